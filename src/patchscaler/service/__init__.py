"""Upscaling as a service: a bounded queue, a worker that packs what waits into one call, and an HTTP API."""

"""What a service counts, for Prometheus; a registry of its own, so that several services can be in one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from patchscaler.service.observer import Observer

if TYPE_CHECKING:
    from patchscaler.result import UpscaleResult
    from patchscaler.service.job import UpscaleJob

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics(Observer):
    """Counters of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = self._counter("requests", "HTTP requests answered.", "method", "route", "status")
        self._accepted = self._counter("jobs_accepted", "Jobs accepted.")
        self._ended = self._counter("jobs_ended", "Jobs that ended.", "state")
        self._failures = self._counter("call_failures", "Calls of the pipeline that failed.")
        self._steps = self._counter("patch_steps", "Network evaluations in sampling, counted by patch.")
        self._batch = self._histogram("batch_jobs", "Jobs in one call of the pipeline.", (1, 2, 4, 8, 16))
        self._seconds = self._histogram("job_seconds", "From acceptance to the end of a job.", _SECONDS)
        self._stages = self._histogram("stage_seconds", "A stage of a call.", _SECONDS, "stage")

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Show a value that is asked for when the metrics are read."""
        Gauge(f"patchscaler_{name}", text, registry=self.registry).set_function(value)

    def accepted(self) -> None:
        """Count a job that was accepted."""
        self._accepted.inc()

    def ended(self, job: UpscaleJob) -> None:
        """Count a job that reached a final state."""
        self._ended.labels(job.state).inc()
        self._seconds.observe(job.finished - job.accepted)

    def call_failed(self) -> None:
        """Count a call of the pipeline that failed."""
        self._failures.inc()

    def call_done(self, results: Sequence[UpscaleResult]) -> None:
        """Count a call of the pipeline."""
        self._batch.observe(len(results))
        for stage, seconds in results[0].timings.items():
            self._stages.labels(stage).observe(seconds)
        self._steps.inc(sum(int(result.steps.sum()) for result in results))

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"patchscaler_{name}_total", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(f"patchscaler_{name}", text, labels, buckets=buckets, registry=self.registry)

"""Training tiles and their degradation."""

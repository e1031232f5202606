"""Metrics, evaluation runs, calibration and reports."""

"""Measurements of ours beside the plain way, in one process: `python -m benchmarks.NAME [--json]`."""

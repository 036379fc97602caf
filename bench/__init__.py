"""Measurements: what is claimed of speed and of recovery, made anew by whoever doubts it. See docs/bench.md."""

"""Benchmarks of set-up time, fail-over and fairness; docs/bench.md has their results."""

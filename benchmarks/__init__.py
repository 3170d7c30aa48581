"""Benchmarks of the calls of a repository: `python -m benchmarks.run`; see README.md."""

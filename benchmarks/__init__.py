"""What a call costs, measured: `python -m benchmarks.run`, see README.md."""

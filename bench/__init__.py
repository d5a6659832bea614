"""What is measured, side by side in one run: `python -m bench`. What the figures mean: `docs/benchmarks.md`."""

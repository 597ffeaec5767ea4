"""Rows, peers and clocks of a GPU; ``python -m benchmarks.gpu`` measures the targets there."""

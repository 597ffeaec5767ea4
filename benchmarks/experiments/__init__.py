"""``python -m benchmarks.experiments``: small models trained on real pixels in minutes, and what they learn."""

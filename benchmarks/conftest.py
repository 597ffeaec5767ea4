"""So that `pytest benchmarks` finds the package `benchmarks` from the root of the checkout."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

"""``python -m trecvit_kernels`` is ``trecvit``."""

from trecvit_kernels.cli import main

main()

"""trecvit_kernels: recurrent video transformers and the kernels under them."""

from trecvit_kernels import backends, ops

__version__ = "0.1.0"
__all__ = ["backends", "ops"]

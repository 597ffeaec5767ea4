"""This package's ops inside other libraries' models, put there and taken out again at run time."""

from trecvit_kernels.integrations.recurrent_gemma import patch_recurrent_gemma, unpatch

__all__ = ["patch_recurrent_gemma", "unpatch"]

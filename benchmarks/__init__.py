"""Speed and memory of trecvit_kernels against its peers and its floors: ``python -m benchmarks --help``."""

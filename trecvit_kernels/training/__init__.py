"""The training program behind ``trecvit train``: configuration, data, loop, checkpoints."""

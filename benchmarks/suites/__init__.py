"""What can be measured: a module a suite, each with ``rows(at: Setting)``."""

SUITES = ("ops", "model", "memory", "flops", "streaming", "scaling", "integrations")

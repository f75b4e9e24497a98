"""Knowledge distillation experiments: one composed config becomes one finished, reproducible run."""

__version__ = "0.1.0"

"""Weights in and out: ``python -m gda.models.import`` and ``python -m gda.models.export``."""

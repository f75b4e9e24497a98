"""Hydra finds launchers only under ``hydra_plugins``; the work is done in ``gda.cluster``."""

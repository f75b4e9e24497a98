"""What a training step costs, and what the Sinkhorn term saves: ``python -m gda.bench``."""

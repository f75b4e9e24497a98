"""What a training step and an evaluation mean."""

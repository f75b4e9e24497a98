"""What is remembered: the run folder (the truth) and its mirror in MLflow."""

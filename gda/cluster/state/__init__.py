"""How the runs of a study stand: what their folders say, and what SLURM says of their jobs."""

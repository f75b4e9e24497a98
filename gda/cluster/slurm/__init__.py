"""Jobs of a SLURM cluster: what it offers, what is submitted, and what a job does when its time is up."""

"""A real SLURM of one node on this machine."""

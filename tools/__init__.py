"""What the house was built with and is tried on: the recipe of the pocket, a SLURM of one node."""

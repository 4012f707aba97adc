"""Tools beside the product: the recipe of the pocket pipeline, and a SLURM of one node."""

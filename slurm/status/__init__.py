"""Show how sweeps stand, to people and to programs."""

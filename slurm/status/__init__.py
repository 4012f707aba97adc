"""How sweeps stand, for people and for programs."""

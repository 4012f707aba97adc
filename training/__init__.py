"""From cells to results on disk: the packed loop, its optimiser, the dynamics and the store."""

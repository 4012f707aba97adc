"""Train cells and store the results: the packed loop, its optimiser, the dynamics and the run folders."""

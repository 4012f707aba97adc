"""One driver for each question, and what they share: options, grids, base rates, progress."""

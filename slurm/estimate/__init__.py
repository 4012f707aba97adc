"""Estimate what packs need: seconds, memory, and how many runs one should hold."""

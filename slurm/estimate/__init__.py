"""What packs are expected to need: seconds, memory, and how many runs one should hold."""

"""Run packs: one attempt, one process, several processes of this machine."""

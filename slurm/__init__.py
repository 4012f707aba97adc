"""Packs get run somewhere: in this process, in worker processes of this machine, later on a cluster."""

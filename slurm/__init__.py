"""Run packs in worker processes of this machine or as job arrays of a cluster. Nothing here knows what they compute.

store <- worker <- estimate <- submit <- status: a room may import those before it.
"""

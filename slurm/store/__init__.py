"""What stands in a sweep's folder about its packs: their files, leases, outcomes, and what was sent where."""

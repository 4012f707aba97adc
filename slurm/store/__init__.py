"""What a sweep's folder holds about its packs: their files, leases, outcomes and submissions."""

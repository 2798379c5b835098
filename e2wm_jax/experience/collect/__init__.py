"""`e2wm collect`: jobs, processes, shards."""

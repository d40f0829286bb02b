"""What a shard goes through: read.py (CPU task), generate.py (GPU actor), finish.py (CPU task)."""

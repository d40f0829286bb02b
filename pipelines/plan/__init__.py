"""What is to be made: input files become shards with stable ids. Start with propose.py."""

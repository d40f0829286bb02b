"""From planned shards to commits on Ray, whatever fails. Start with dispatch.py."""

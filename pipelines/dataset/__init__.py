"""From commits to a published dataset, without Ray. Start with publish.py."""

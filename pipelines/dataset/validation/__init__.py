"""Check an output from its files alone, with an account of its own. Start with validate.py."""

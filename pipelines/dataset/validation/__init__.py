"""Validate an output from its files alone. Start with validate.py."""

"""Validate an output from its files alone, with independent counting. Start with validate.py."""

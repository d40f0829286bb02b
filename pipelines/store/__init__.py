"""Local folders, object stores and the create-only write. Start with storage.py."""

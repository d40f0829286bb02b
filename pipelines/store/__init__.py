"""One door to local folders and object stores, and the create-only write. Start with storage.py."""

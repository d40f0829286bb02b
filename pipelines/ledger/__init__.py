"""What is known about a job: immutable objects in its output. Start with ledger.py."""

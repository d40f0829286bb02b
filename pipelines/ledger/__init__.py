"""What is known about a job, written once and never changed. Start with ledger.py."""

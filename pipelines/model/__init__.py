"""Which weights a job uses: their identity and pins, the fingerprint, memory, and how a worker loads them.

Start with identity.py; loading.py is the worker's side.
"""

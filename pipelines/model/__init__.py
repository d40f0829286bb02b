"""The weights of a job: identity and pins, fingerprint, memory, loading.

Start with identity.py, which the driver uses; workers use loading.py.
"""

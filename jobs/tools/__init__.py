"""Maintainers' tools: benchmarks, measurements of filters and scores, GPU check.

Run them from a checkout (`python -m jobs.tools.<name>`, `jointdit bench`). They do not ship in the wheel.
"""

"""Tools for the maintainers: benches, measurements of filters and scores, throughput tables, the GPU check.

They run from a checkout (`python -m jobs.tools.<name>`, `jointdit bench`) and do not ship in the wheel.
"""

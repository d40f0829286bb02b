"""Training of an adapter on data, on Ray Train.

Read in this order: spec (the keys), run (the driver and its workers), tables (pairs from datasets and Parquet),
encoded (pairs that task `encode` has made). The optimisation itself is jointdit/training/adapter.py and knows no Ray.
"""

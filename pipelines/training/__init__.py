"""Training of an adapter on Ray Train.

Read in this order: spec (the keys), run (the driver and its workers), tables (pairs from datasets and Parquet), encoded
(pairs from task `encode`). The training loop is jointdit/training/adapter.py and does not use Ray.
"""

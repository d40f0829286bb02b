"""The parts of `jointdit evaluate`; jobs/evaluate.py runs them.

context.py         the checkpoint, the sizes, and results that several parts share
depth.py           vae, depth, styles, lifting, steps
generation.py      joint, restyle
benchmarks.py      zero-shot depth on data sets, published figures beside it
sheets.py          sheets of samples
"""

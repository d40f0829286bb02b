"""What `jointdit evaluate` computes, part by part; jobs/evaluate.py is the spine.

context.py         the checkpoint, its sizes, what several parts share
depth.py           vae, depth, styles, lifting, steps
generation.py      joint, restyle, spectra
benchmarks.py      zero-shot depth on data sets, published figures beside it
sheets.py          sheets of samples
"""

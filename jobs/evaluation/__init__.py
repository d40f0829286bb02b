"""The parts of `jointdit evaluate`; jobs/evaluate.py runs them.

context.py         the checkpoint, the sizes, and results that several parts share
depth.py           vae, depth, styles, lifting, steps
generation.py      joint, restyle, spectra
benchmarks.py      zero-shot depth on benchmarks, with published figures
sheets.py  spectra_figure.py   sheets of samples and figures
"""

"""Loading of weights: published layouts, checks, base networks, quantization, offload.

Start with checkpoint_files.py.
"""

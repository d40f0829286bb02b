"""From files to a network in memory: published layouts, checks, base networks, quantization, offload.

Start with checkpoint_files.py.
"""

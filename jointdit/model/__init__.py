"""The network: FLUX on a doubled batch, a LoRA on the depth half, the joint connection.

Start with transformer.py.
"""

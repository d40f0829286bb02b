"""The network: FLUX on a doubled batch [rgb; depth], a LoRA on the depth half, and the joint connection.

Start with transformer.py.
"""

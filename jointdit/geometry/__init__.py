"""Disparity, depth in metres, and points.

Start with depth.py.
"""

"""Geometry: relative disparity, depth in metres, image sizes, point clouds.

Start with depth.py.
"""

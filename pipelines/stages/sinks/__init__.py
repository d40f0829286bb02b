"""Sinks: samples become the bytes of files. finish.py chooses the names and writes them.

geometry.py   camera and depth range of a sample, and where they come from
parquet.py    the columns of the dataset; the Arrow schema is the contract
ply.py        a point cloud
"""

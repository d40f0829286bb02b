"""Sinks: samples -> bytes of files. They decide what is in a file, never its name: `finish.py` writes them.

geometry.py   camera and depth range of a sample, and where they come from
parquet.py    the columns of the dataset; the Arrow schema is the contract
ply.py        a point cloud
"""

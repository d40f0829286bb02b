"""The job spec, its sections, and how it is read.

Start with job.py. sections.py and running.py define the sections, file.py reads the YAML.
"""

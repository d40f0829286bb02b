"""The job spec. Start with job.py; sections.py and running.py define the sections, file.py reads the YAML."""

"""What a job is asked for. Start with job.py; sections.py holds the sections, file.py reads the YAML."""

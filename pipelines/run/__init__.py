"""One run, from the spec to the published version. Start with job.py."""

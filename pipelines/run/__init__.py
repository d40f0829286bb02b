"""One run, from the spec to the published version. The spine is job.py."""

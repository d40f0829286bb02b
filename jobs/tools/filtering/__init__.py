"""Parts of `python -m jobs.tools.measure_filters`: planted faults, recall, tables.

faults.py           faults planted in clean samples, and clean samples in several styles
recall.py           scores of all samples: recall, false alarms, thresholds
tables.py           the tables and the image of pipelines/quality/README.md
near_duplicates.py  recall and false alarms of perceptual hashes, a command of its own
"""

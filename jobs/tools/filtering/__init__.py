"""What `python -m jobs.tools.measure_filters` is made of; jobs/tools/measure_filters.py is the spine.

faults.py       faults planted in clean samples, and clean samples drawn in other hands
recall.py       scores of all of them: recall, false alarms, thresholds between the two
checkpoint.py   self-consistency on swapped maps, and what the filters reject of a checkpoint's samples
tables.py       the tables and the image of pipelines/quality/README.md
"""

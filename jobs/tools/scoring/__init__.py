"""What `python -m jobs.tools.measure_scores` and `python -m jobs.tools.measure_critics` share.

separation.py   scores of right and of spoilt samples: ROC AUC, what a filter rejects, tables in Markdown
sheet.py        an image of each fault that a filter rejects
spoilt.py       faults of images and captions beside those of jobs/tools/filtering/faults.py
critics.py      small critics of the real classes of transformers, fitted to rendered scenes
"""

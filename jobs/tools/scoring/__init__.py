"""Shared parts of measure_scores and measure_critics.

separation.py    scores of right and of faulty samples: ROC AUC, rejected shares, tables in Markdown
sheet.py         images of rejected samples, one per fault
model_faults.py  more faults of images and captions, beside those of jobs/tools/filtering/faults.py
critics.py       small critics of the real classes of transformers, fitted to rendered scenes
"""

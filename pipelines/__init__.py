"""Datasets by the million, on Ray: a job spec in, a clean RGB-D dataset out.

The spine is `run.py`: plan -> pending -> dispatch -> commit -> publish. Read it first, then follow a shard:

    spec.py       what is asked for            fingerprint.py  what decides pixels
    plan.py       inputs -> shards             ledger.py       create-only plans, commits, crash counts, versions
    read.py       rows -> samples (a Ray task) worker.py       samples -> pixels (the Ray actor, one model)
    finish.py     pixels -> files and a commit publish.py      commits -> a version, its card and gallery
    status.py     the ledger, told             validate.py     the whole account again, from the files alone

Under them: `storage.py` (one way to local folders and object stores, and the create-only write everything rests on),
`readers/`, `quality/`, `sinks/`. The promise: each planned sample of a published version ends exactly once in kept,
rejected or quarantined.
"""

"""The data engine: turns a job spec into an RGB-D dataset, on Ray.

Read run/job.py first: plan -> pending -> dispatch -> commit -> publish. The packages, each importing only those below:

    run/       one run, from the spec to a published version       training/  an adapter trained on a dataset
    engine/    from planned shards to commits, on Ray              dataset/   from commits to a published dataset
    plan/      which shards there are to make
    stages/    what a shard goes through: read, generate, finish; readers/ and sinks/
    ledger/    plans, commits, versions: create-only objects in the output
    model/     which weights a job uses, and how they are loaded
    spec/      what a job is asked for
    quality/   filters
    store/     local folders and object stores, and the create-only write

records.py defines rows, samples and shards. Each planned sample of a published version ends exactly once: kept,
rejected or quarantined.
"""

"""Where weights come from: named in a spec, pinned by the driver, brought to each node once, checked there.

    addresses.py    what a name in the spec means: a folder or file, a name on the Hugging Face hub, an object store
    selection.py    which files of a checkpoint are wanted: safetensors, configurations, tokenizers; never a pickle
    pins.py         the driver: exactly which files, with their hashes, so that no worker can load others
    terms.py        the licence of the weights, and whether their hub repository is gated
    node_cache.py   a worker: the files of a pin on this node's disk, downloaded by one of its processes
    hub.py  store.py    the two places that files are downloaded from
    headers.py      a checkpoint's tensors checked from the headers of files that stay where they are

A pin is made once, before anything is written to the output, and goes to each worker with the job's context.
"""

"""Sources of weights: pinned by the driver, downloaded once per node, verified there.

    selection.py        the files of a checkpoint that are needed: safetensors, configs, tokenizers; never a pickle
    pins.py             driver: the exact files with their hashes, so that workers cannot load others
    terms.py            the licence of the weights, and whether their hub repository is gated
    node_cache.py       worker: the files of a pin on this node's disk, downloaded by one of its processes
    hub.py  store.py    downloads from the Hugging Face hub and from object stores
    headers.py          check of a checkpoint's tensors from headers, without downloading the files

A pin is made once, before anything is written to the output, and is sent to each worker with the job's context.
pipelines/spec/weights_address.py parses the names of weights.
"""

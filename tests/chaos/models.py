"""Workers of the storm with a stand-in model that can also run out of memory."""

from __future__ import annotations

import resource

import numpy as np

from tests.stand_in import StandInPipeline, StandInWorker

ROOM_BYTES = 64 << 20  # what a process may allocate when MEMORY exhausts it
TROUBLE = ("RAISE", "NAN", "KILL", "HANG", "MEMORY", "DEVICE", "HALVE")


class StormPipeline(StandInPipeline):
    """Words in a prompt exhaust memory: MEMORY that of the host, DEVICE of the GPU, HALVE of the GPU in a batch."""

    def __call__(self, *, seeds, prompt=None, **arguments):
        for text in prompt or []:
            if "DEVICE" in text or ("HALVE" in text and len(seeds) > 1):
                import torch

                raise torch.OutOfMemoryError("the stand-in's device is full")
            if "MEMORY" in text:
                exhaust_memory()
        return super().__call__(seeds=seeds, prompt=prompt, **arguments)


class CalmPipeline(StandInPipeline):
    """Gives the same arrays for the same prompts and seeds, without faults."""

    def __call__(self, *, seeds, prompt=None, **arguments):
        calm = None if prompt is None else ["FLAT" if "FLAT" in text else "calm" for text in prompt]
        return super().__call__(seeds=seeds, prompt=calm, **arguments)


class StormWorker(StandInWorker):
    def load(self):
        return StormPipeline(self.context.height, self.context.width)


class CalmWorker(StandInWorker):
    def load(self):
        return CalmPipeline(self.context.height, self.context.width)


def exhaust_memory() -> None:
    """Raise MemoryError by allocating more than a temporary limit of the process."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM_BYTES, before[1]))
    try:
        np.ones(4 * ROOM_BYTES, np.uint8)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)

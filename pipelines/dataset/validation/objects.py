"""Read and check the objects of a dataset in batches, by threads or on a cluster, with progress and a resume.

A batch is checked in one call, and nothing depends on the order of batches. Objects never change, so one that passed
with the same size and hash need not be read again (passed.py). Whether it is still there with its size is found by a
listing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from pipelines.dataset.validation.checks import Checked, check_object
from pipelines.dataset.validation.passed import Passed
from pipelines.ledger.entries import OBJECT_FOLDERS, StoredObject
from pipelines.spec.job import JobSpec
from pipelines.store.connections import PARALLEL_TABLES
from pipelines.store.storage import Storage

BATCH_OBJECTS, BATCH_BYTES = 64, 64_000_000

Batch = tuple[StoredObject, ...]


@dataclass(frozen=True)
class CheckBatch:
    """Checks batches of objects; it can be sent to another machine."""

    storage: Storage
    spec: JobSpec

    def __call__(self, batch: Batch) -> list[Checked]:
        """Read and check each object in full."""
        return [check_object(self.storage, self.spec, stored) for stored in batch]


Checks = Iterator[tuple[Batch, list[Checked]]]  # in any order
MapBatches = Callable[[CheckBatch, Iterable[Batch]], Checks]


@dataclass
class Progressed:
    """How far a check of objects has come."""

    objects: int  # checked, or taken from an earlier check
    of_objects: int
    bytes: int
    of_bytes: int
    taken: int  # objects that passed in an earlier check and are not read


@dataclass(frozen=True)
class Checking:
    """How objects are checked."""

    map: MapBatches = field(default_factory=lambda: by_threads)
    passed: Passed | None = None  # where objects that passed are remembered
    progress: Callable[[Progressed], None] = lambda _: None


def check_objects(
    storage: Storage, spec: JobSpec, objects: Mapping[str, StoredObject], how: Checking
) -> Iterator[tuple[StoredObject, Checked]]:
    """Check each object, by path, and yield what was found, in no order. What passed before is not read again."""
    sizes = [stored.bytes for stored in objects.values()]
    state = Progressed(0, len(objects), 0, sum(sizes), 0)
    clouds = {path for path, stored in objects.items() if stored.kind == "points"}
    how.progress(state)
    known = _images_of_passed(objects.values(), how.passed)
    faults = dict(_other_sizes(storage, {path: objects[path].bytes for path in known}))
    for path, images in known.items():
        problems = [faults[path]] if path in faults else []
        yield objects[path], Checked(problems, images)
    _count(state, [objects[path] for path in known])
    state.taken = len(known)
    how.progress(state)
    left = (stored for path, stored in objects.items() if path not in known)
    for batch, found in how.map(CheckBatch(storage, spec), batches(left)):
        for stored, checked in zip(batch, found, strict=True):
            checked.problems += unnamed_clouds(stored, checked, clouds)
            yield stored, checked
        if how.passed is not None:
            how.passed.add([(s, c.images) for s, c in zip(batch, found, strict=True) if not c.problems])
        _count(state, batch)
        how.progress(state)


def _count(state: Progressed, objects: Sequence[StoredObject]) -> None:
    state.objects += len(objects)
    state.bytes += sum(stored.bytes for stored in objects)


def _images_of_passed(objects: Iterable[StoredObject], passed: Passed | None) -> dict[str, int]:
    """Return path -> number of images of the objects that passed in an earlier check."""
    if passed is None or not passed.is_resumed:
        return {}
    return {path: images for batch in batches(objects) for path, images in passed.images_of(batch).items()}


def _other_sizes(storage: Storage, sizes: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Yield (path, problem) of objects that are gone or have another size, from a listing of each folder."""
    missing = set(sizes)
    for folder in OBJECT_FOLDERS if sizes else ():
        for info in storage.list(folder):
            if info.path in missing:
                missing.remove(info.path)
                if info.size != sizes[info.path]:
                    yield info.path, f"{info.path} has {info.size} bytes, its commit says {sizes[info.path]}."
    yield from ((path, f"{path} is named by a commit and missing.") for path in missing)


def unnamed_clouds(stored: StoredObject, checked: Checked, clouds: Collection[str]) -> Iterator[str]:
    """Check that the point clouds that the rows of a table name are among those that commits and versions name."""
    for identifier, path in checked.clouds:
        if path not in clouds:
            yield f"{stored.path}: sample {identifier} names {path}, which no commit and no version names."


def batches(objects: Iterable[StoredObject]) -> Iterator[Batch]:
    """Divide objects into batches of about BATCH_BYTES and at most BATCH_OBJECTS."""
    batch: list[StoredObject] = []
    size = 0
    for stored in objects:
        if batch and (len(batch) == BATCH_OBJECTS or size + stored.bytes > BATCH_BYTES):
            yield tuple(batch)
            batch, size = [], 0
        batch.append(stored)
        size += stored.bytes
    if batch:
        yield tuple(batch)


def by_threads(check: CheckBatch, all_batches: Iterable[Batch]) -> Checks:
    """Check single objects on threads, as many at once as connections allow. An interruption drops waiting ones."""
    running: dict[Future[list[Checked]], Batch] = {}
    with ThreadPoolExecutor(PARALLEL_TABLES) as pool:
        try:
            for stored in (stored for batch in all_batches for stored in batch):
                running[pool.submit(check, (stored,))] = (stored,)
                if len(running) > PARALLEL_TABLES:
                    yield from _done(running)
            while running:
                yield from _done(running)
        finally:
            for future in running:
                future.cancel()


def _done(running: dict[Future[list[Checked]], Batch]) -> Checks:
    done: Sequence[Future[list[Checked]]] = list(wait(running, return_when=FIRST_COMPLETED).done)
    for future in done:
        yield running.pop(future), future.result()

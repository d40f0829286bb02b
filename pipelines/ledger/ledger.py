"""The ledger of a job: immutable objects in its output that record the plan and the commits.

    _job.json                        the frozen spec and the fingerprint; later runs must agree with it
    _plan/000001.parquet             shards, in order; a later run appends 000002, ...
    _commits/<shard id>.json         the one successful attempt of a shard: its objects and the outcome of each sample
    _crashes/<shard id>/<n>.json     the crashes of a shard's processes, and which samples were in progress
    _versions/000001/version.json    a published version (dataset/publish.py)

All of them are create-only (store/storage.py), so drivers and attempts may race and die at any time: the first write
stands, and all readers see the same object. There is no other state: what is left to do is the plan minus the commits.
Files of other names are ignored (names.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from jointdit.errors import StoreError
from pipelines.ledger import names as ledger_names
from pipelines.ledger.entries import (
    FORMAT,
    Commit,
    Job,
    PlannedShard,
    json_bytes,
    new_token,
    now,
    parse,
)
from pipelines.ledger.plan_tables import PLAN_SCHEMA, is_first, rows_of, table_of
from pipelines.model.fingerprint import Fingerprint, check_same, code_version
from pipelines.records import Shard
from pipelines.spec.changes import check_written
from pipelines.spec.file import translate_recorded
from pipelines.spec.job import JobSpec
from pipelines.store.connections import PARALLEL_REQUESTS
from pipelines.store.explain import explained
from pipelines.store.parquet import parquet_bytes, read_parquet
from pipelines.store.storage import AlreadyExists, Storage


def open_output(uri: str, single_writer: bool = False) -> Storage:
    """Return the storage of an output. `--single-writer` holds for every later command once a job was started with it.

    Raises:
        StoreError: the store refuses access, or `_job.json` is damaged.
    """
    storage = Storage(uri, single_writer)
    if not single_writer:
        storage.single_writer = Ledger(storage).is_single_writer()
    return storage


class Ledger:
    """The ledger of one output."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._tables: dict[int, pa.Table] = {}  # plan files by number; they never change
        self._plans: dict[int, list[PlannedShard]] = {}
        self.known_commits: pa.Array | None = None  # ids of shards that were found committed (resume.py); None: no read

    def open_job(
        self, spec: JobSpec, fingerprint: Fingerprint, sources: dict[str, dict[str, Any]] | None = None
    ) -> Job:
        """Write the spec into `_job.json`, or check that the existing job agrees with it.

        Args:
            sources: where the weights come from, as `ModelIdentity.recorded` returns them.

        Raises:
            SpecError: the output holds a job with other pixels, or that writes them in another way. The message names
                the fields.
        """
        resolved = spec.model_dump(mode="json")
        job = Job(
            spec.as_given(), fingerprint, code_version(), now(), self.storage.single_writer, resolved, sources or {}
        )
        try:
            self.storage.create_bytes("_job.json", json_bytes({**asdict(job), "token": new_token()}))
        except AlreadyExists:
            job = self.read_job()
            self._check_agreement(job, spec, fingerprint)
        return job

    def check_job(self, spec: JobSpec, fingerprint: Fingerprint) -> bool:
        """Return whether the output already holds this job. Raises SpecError where it holds a different one."""
        exists = self._has_job()
        if exists:
            self._check_agreement(self.read_job(), spec, fingerprint)
        return exists

    def _check_agreement(self, job: Job, spec: JobSpec, fingerprint: Fingerprint) -> None:
        check_same(job.fingerprint, fingerprint, self.storage.uri)
        check_written(job.spec, job.resolved, spec, self.storage.uri)

    def _has_job(self) -> bool:
        with explained(self.storage.uri, at_start=True):
            return self.storage.exists("_job.json")

    def read_job(self) -> Job:
        """Return the job of this output. Raises StoreError where there is none."""
        try:
            with explained(self.storage.uri, at_start=True):
                data = self.storage.read_bytes("_job.json")
            fields = parse(data, self.storage.uri_of("_job.json"))
        except FileNotFoundError:
            raise StoreError(f"{self.storage.uri} holds no job: there is no _job.json; check the address.") from None
        fields.setdefault("sources", {})  # earlier versions did not write it
        if missing := Job.__dataclass_fields__.keys() - fields:
            name = self.storage.uri_of("_job.json")
            raise StoreError(f"{name} has no {min(missing)}, so it is damaged: restore it from a backup.")
        fields |= {name: translate_recorded(fields[name]) for name in ("spec", "resolved")}
        return Job(**{name: fields[name] for name in Job.__dataclass_fields__})

    def is_single_writer(self) -> bool:
        """Return whether the job of this output was started with `--single-writer`. False where there is no job."""
        return self._has_job() and self.read_job().single_writer

    def recorded_sources(self) -> dict[str, dict[str, Any]]:
        """Return where the weights of this output's job came from. Empty where there is no job."""
        return self.read_job().sources if self._has_job() else {}

    def recorded_fingerprint(self) -> Fingerprint | None:
        """Return the fingerprint of this output's job. None where there is no job."""
        return self.read_job().fingerprint if self._has_job() else None

    def plan_numbers(self) -> list[int]:
        """Return the numbers of the plan files, in order."""
        return sorted(int(name["number"]) for name in ledger_names.in_folder(self.storage, "_plan"))

    def append_plan(self, number: int, shards: Sequence[PlannedShard]) -> None:
        """Write a plan file. Raises AlreadyExists where another driver wrote that number with other shards."""
        self.storage.create_bytes(ledger_names.plan_file(number), parquet_bytes(table_of(shards)))

    def planned(self) -> list[PlannedShard]:
        """Return all planned shards in (plan, position) order. Raises StoreError where a plan file is damaged."""
        for number in self.plan_tables():
            if number not in self._plans:
                self._plans[number] = self.entries(number)
        return [entry for number in sorted(self._plans) for entry in self._plans[number]]

    def plan_tables(self) -> dict[int, pa.Table]:
        """Return the plan files by number, in order. Raises StoreError where one is damaged."""
        for number in self.plan_numbers():
            if number not in self._tables:
                self._tables[number] = self._read_plan(number)
        return {number: self._tables[number] for number in sorted(self._tables)}

    def _read_plan(self, number: int) -> pa.Table:
        name = ledger_names.plan_file(number)
        data = self.storage.read_bytes(name)
        try:
            return read_parquet(data, PLAN_SCHEMA)
        except (pa.ArrowException, OSError) as error:
            raise StoreError(f"{self.storage.uri_of(name)} is damaged: restore it from a backup.") from error

    def entries(self, number: int, positions: Sequence[int] | None = None) -> list[PlannedShard]:
        """Return shards of a plan file that `plan_tables` has read: all, or those at `positions`."""
        entries = []
        for row in rows_of(self._tables[number], positions):
            first = 0 if row.round == 0 or row.indices else row.round * self._samples_per_row()
            indices = row.indices or tuple(range(first, first + row.samples_per_row))
            shard = Shard(row.shard, row.spans, row.round)
            shards = shard, row.samples_per_row, number, row.position, indices, row.retry, row.carried
            entries.append(PlannedShard(*shards))
        return entries

    def _samples_per_row(self) -> int:
        """Return the samples per row of the job, which its fingerprint fixes."""
        firsts = (self._tables[number].filter(is_first(self._tables[number])) for number in sorted(self._tables))
        return next(int(table["samples_per_row"][0].as_py()) for table in firsts if len(table))

    def committed(self) -> set[str]:
        """Return the ids of the committed shards, from one listing."""
        return {name["shard"] for name in ledger_names.in_folder(self.storage, "_commits")}

    def is_committed(self, shard: str) -> bool:
        """Return whether a shard has a commit, with one request."""
        name = f"_commits/{shard}.json"
        if self.storage.is_local:
            return self.storage.exists(name)
        try:
            with explained(self.storage.uri, name):
                self.storage.fs.cat_file(self.storage.path(name), start=0, end=1)  # else s3fs asks for the size first
        except FileNotFoundError:
            return False
        return True

    def read_commit(self, shard: str) -> Commit | None:
        """Return the commit of a shard, or None."""
        name = f"_commits/{shard}.json"
        try:
            return Commit.from_bytes(self.storage.read_bytes(name), self.storage.uri_of(name))
        except FileNotFoundError:
            return None

    def read_commits(self, shards: Iterable[str]) -> dict[str, Commit]:
        """Return the commits of those shards that have one."""
        with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
            return {commit.shard: commit for commit in pool.map(self.read_commit, shards) if commit is not None}

    def commit(self, commit: Commit) -> Commit:
        """Write the commit of a shard, or return the commit that already exists.

        Raises:
            CommitFailed, CommitUnknown: the shard is retried. A retry finds a commit that landed unnoticed.
        """
        try:
            self.storage.create_bytes(f"_commits/{commit.shard}.json", commit.to_bytes())
        except AlreadyExists:
            winner = self.read_commit(commit.shard)
            assert winner is not None, "commits are never deleted"
            return winner
        return commit

    def record_crash(self, shard: str, record: dict[str, Any]) -> None:
        """Add a crash record to a shard."""
        data = json_bytes({**record, "token": new_token(), "at": now(), "format": FORMAT})
        while True:
            number = 1 + max(self.crash_numbers(shard), default=0)
            try:
                self.storage.create_bytes(f"_crashes/{shard}/{number}.json", data)
                return
            except AlreadyExists:
                continue  # another driver wrote that number at the same time

    def crashes(self, shard: str) -> list[dict[str, Any]]:
        """Return the crash records of a shard, in order."""
        names = [f"_crashes/{shard}/{number}.json" for number in self.crash_numbers(shard)]
        records = [parse(self.storage.read_bytes(name), name) for name in names]
        for name, record in zip(names, records, strict=True):
            if "stage" not in record:
                raise StoreError(
                    f"{self.storage.uri_of(name)} has no stage, so it is damaged: restore it from a backup."
                )
        return records

    def crash_numbers(self, shard: str) -> list[int]:
        """Return the numbers of the crash records of a shard, in order."""
        names = (f"{shard}/{name}" for name in self.storage.names(f"_crashes/{shard}"))
        return sorted(int(name["number"]) for name in ledger_names.matches("_crashes", names))

    def crash_counts(self) -> Counter[str]:
        """Map the ids of the shards with crash records to their number, from one listing."""
        return Counter(name["shard"] for name in ledger_names.in_folder(self.storage, "_crashes"))

    def shards_with_crashes(self) -> set[str]:
        """Return the ids of the shards with crash records, from one listing."""
        return set(self.crash_counts())

    def foreign_names(self) -> list[str]:
        """Return the names in the ledger's folders that this system did not write, printable and sorted."""
        return ledger_names.foreign_names(self.storage)

"""The account of a history: every planned sample in exactly one place, and no immutable file changed.

It is taken after each operation and shares no code with the engine: it reads the files of the output
(ledger_account.py) and knows from the history the content of every input file (world.py).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.chaos.carried_account import check_carried, check_ids, places_of
from tests.chaos.ledger_account import (
    Committed,
    Identity,
    Planned,
    Published,
    Rows,
    counting_versions,
    current_versions,
    described_by,
    expected_samples,
    follows,
    is_by,
    read_commit,
    read_plan,
    read_published,
    table_rows,
)
from tests.chaos.objects import Objects, Stamp
from tests.chaos.partial_account import check_left_out, check_withheld, waiting_rows
from tests.chaos.problems import Problem, check_sums, revised, short, shown
from tests.chaos.world import InputRow

OUTCOMES = ("kept", "rejected", "quarantined")
MOVED = "moved:"  # prefix of the ETag of a file that was moved before all its rows were read
COLUMNS = ("id", "prompt", "pointcloud", "quality", "error")
NEVER_READ = "does not exist any more"  # error of rows whose file is gone
Key = tuple[str, ...]  # identifies a row in any file


class Account:
    """The account of one output; it remembers what it has read and reads only what is new."""

    def __init__(self, objects: Objects, contents: Mapping[tuple[str, str], Sequence[InputRow]]) -> None:
        self.objects, self.contents = objects, contents
        self.files: dict[str, Stamp] = {}
        self.plans: dict[int, list[Planned]] = {}
        self.commits: dict[str, Committed] = {}
        self.read: set[tuple[str, str]] = set()  # files (uri, etag) of which a row was read by any attempt
        self.versions: dict[int, Published] = {}  # also pruned ones
        self._once: dict[str, tuple[Stamp, str]] = {}  # path -> stamp and SHA-256 of immutable files
        self._intact: dict[str, tuple[Stamp, str]] = {}  # path -> stamp and SHA-256 at the last read

    def check(self) -> list[Problem]:
        """Return all problems."""
        self.files = self.objects.listed()
        problems = [*self._check_written_once(), *self._read_plans(), *self._read_commits()]
        problems += [Problem(*fault) for fault in check_ids(self.commits, self.contents)]
        return problems or [*self._check_versions(), *self._check_objects()]

    def retained(self) -> list[Published]:
        """Return the readable versions in order, without pruned ones."""
        pruned = {int(name.split("/")[1]) for name in self.files if name.endswith("/pruned.json")}
        return [self.versions[number] for number in self._numbers() if number in self.versions.keys() - pruned]

    def check_end(self, listed: Mapping[str, str], strict: bool) -> Iterator[Problem]:
        """Check after a run without faults that each row of the listed files (uri -> etag) is in the latest version.

        `strict`: a model without faults has retried all quarantined samples, so no readable row is quarantined.
        """
        versions = self.retained()
        if not versions:
            yield Problem("end", "no version is published.")
            return
        latest = versions[-1]
        if latest.covered is not None:
            yield Problem("end", f"version {latest.number} is partial.")
        yield from self._check_samples(latest, sorted(self.plans))  # also with plan files that plan nothing
        where = defaultdict(set)
        for row in latest.outcomes:
            where[row["uri"], row["etag"], row["position"]].add(row["outcome"])
        made_at = places_of([entry for number in sorted(self.plans) for entry in self.plans[number]], listed)
        for uri, etag in listed.items():
            for position, row in enumerate(self.contents[uri, etag]):
                ends = where.get((uri, *made_at.get((uri, etag, position), (etag, position))), set())
                if not ends:
                    yield Problem(
                        "listed", f"row {position} of {short(uri)} ({row.id}) is not in version {latest.number}."
                    )
                elif strict and "quarantined" in ends and row.text and row.id != "":
                    yield Problem("listed", f"row {position} of {short(uri)} ({row.id}) stays quarantined.")

    def check_published(self) -> Iterator[Problem]:
        """Check after `jointdit publish` that the latest version has all that is committed."""
        versions = self.retained()
        if versions:
            now = replace(versions[-1], covered=frozenset(self.commits))
            yield from (
                p for p in self._check_samples(now, sorted(self.plans)) if p.kind not in ("partial", "withheld")
            )
        elif any(commit.samples for commit in self.commits.values()) and not self._may_withhold_all():
            yield Problem("published", "samples are committed and no version is published.")

    def _may_withhold_all(self) -> bool:
        """Return whether a first version may wait for all rows, because of keep_best."""
        return "keep_best" in json.loads(self.objects.read("_job.json"))["spec"].get("quality", {})

    def _numbers(self) -> list[int]:
        return sorted(
            int(n.split("/")[1]) for n in self.files if n.startswith("_versions/") and n.endswith("/version.json")
        )

    def _read_once(self, name: str) -> bytes:
        data = self.objects.read(name)
        self._once[name] = self.files[name], hashlib.sha256(data).hexdigest()
        return data

    def _check_written_once(self) -> Iterator[Problem]:
        """Check that plan files, commits and version.json do not change."""
        for name, (stamp, digest) in list(self._once.items()):
            if name not in self.files:
                yield Problem("changed", f"{name} was deleted.")
            elif self.files[name] != stamp and hashlib.sha256(self._read_once(name)).hexdigest() != digest:
                yield Problem("changed", f"{name} has changed.")

    def _read_plans(self) -> Iterator[Problem]:
        names = sorted(name for name in self.files if name.startswith("_plan/") and name.endswith(".parquet"))
        numbers = [int(name[6:-8]) for name in names]
        if numbers != list(range(1, len(numbers) + 1)):
            yield Problem("plan", f"plan files {numbers} have a gap.")
        for number, name in zip(numbers, names, strict=True):
            if number not in self.plans:
                self.plans[number] = read_plan(self._read_once(name), number)
                yield from self._check_plan(number)
                faults = check_carried(number, self.plans, self.commits, self.contents)
                yield from (Problem(*fault) for fault in faults)

    def _check_plan(self, number: int) -> Iterator[Problem]:
        """Check that a plan file plans or carries each row of the input versions that it names, and each once."""
        rows: Counter[tuple[str, str, int]] = Counter()
        for entry in self.plans[number]:
            rows.update((row.uri, row.etag, row.position) for row in entry.carried)
            for span in entry.spans:
                if entry.is_first:
                    rows.update((span.uri, span.etag, position) for position in range(span.start, span.stop))
        for uri, etag in {(span.uri, span.etag) for e in self.plans[number] if e.is_first for span in e.spans}:
            if etag.startswith(MOVED) and not any(file == uri for file, _, _ in rows):
                yield from self._check_move(number, uri, etag.removeprefix(MOVED))
                continue
            if (uri, etag) not in self.contents:
                yield Problem("plan", f"{short(uri)} {etag} is planned but never existed.")
                continue
            planned = sorted(position for file, tag, position in rows.elements() if (file, tag) == (uri, etag))
            if planned != list(range(len(self.contents[uri, etag]))):
                has = f"has {len(self.contents[uri, etag])} rows, but rows {planned} are planned"
                yield Problem("plan", f"_plan/{number:06d}: {short(uri)} {has}.")

    def _check_move(self, number: int, uri: str, etag: str) -> Iterator[Problem]:
        """Check that another file has, or had, the content of a file that was moved."""
        planned = [entry for n in sorted(self.plans) if n <= number for entry in self.plans[n]]
        current, content = current_versions(planned), self.contents.get((uri, etag))
        had = {span.uri for entry in planned for span in entry.spans if span.etag == etag} - {uri}
        if not any(
            self.contents.get((file, etag)) == content and not current[file][0].startswith(MOVED) for file in had
        ):
            yield Problem("plan", f"_plan/{number:06d}: {short(uri)} counts as moved, but no file has its rows.")

    def _read_commits(self) -> Iterator[Problem]:
        shards = {entry.shard: entry for plan in self.plans.values() for entry in plan}
        for name in sorted(name for name in self.files if name.startswith("_commits/") and name.endswith(".json")):
            shard = name[9:-5]
            if shard in self.commits:
                continue
            if shard not in shards:
                yield Problem("commit", f"{name} belongs to no planned shard.")
                continue
            commit = self.commits[shard] = read_commit(self._read_once(name), shards[shard])
            self.read |= {key[:2] for key, (_, outcome) in commit.samples.items() if outcome != "quarantined"}
            planned = Counter(shards[shard].identities())
            if Counter(commit.samples.keys()) != planned or commit.count != planned.total():
                yield Problem("commit", f"{name} has {commit.count} samples for {planned.total()} planned ones.")
            ends = Counter(outcome for _, outcome in commit.samples.values())
            if {outcome: ends[outcome] for outcome in OUTCOMES} != commit.counts:
                yield Problem("commit", f"{name} counts {commit.counts} and has {dict(ends)}.")

    def _check_versions(self) -> Iterator[Problem]:
        for number in self._numbers():
            name = f"_versions/{number:06d}"
            is_pruned = f"{name}/pruned.json" in self.files
            if number in self.versions:
                fields = self.versions[number].fields
            else:
                fields = json.loads(self._read_once(f"{name}/version.json"))
            if is_pruned:
                continue
            described = described_by(fields)
            for path, digest in described.items():
                yield from self._check_bytes(f"version {number}", path, None, digest)
            if not described.keys() <= self.files.keys():
                continue
            if number not in self.versions:
                version = read_published(number, fields, self.objects.read)
                yield from self._check_new(version)
                self.versions[number] = version

    def _check_new(self, version: Published) -> Iterator[Problem]:
        """Check a new version once."""
        plans = version.fields["plans"]
        if plans != list(range(1, len(plans) + 1)) or not set(plans) <= set(self.plans):
            yield Problem("plan", f"version {version.number} has plans {plans}.")
            return
        yield from self._check_samples(version, plans)
        yield from self._check_tables(version)
        earlier = [self.versions[number] for number in sorted(self.versions) if number < version.number]
        if earlier:
            yield from revised(earlier[-1], version)
            if len(version.fields["plans"]) < len(earlier[-1].fields["plans"]):
                yield Problem("older", f"version {version.number} has fewer plan files than {earlier[-1].number}.")

    def _check_samples(self, version: Published, plans: Sequence[int]) -> Iterator[Problem]:
        """Check that a version has each expected sample of these plan files exactly once, and no other."""
        planned = [entry for number in plans for entry in self.plans[number]]
        current, expected = counting_versions(planned, version.covered), expected_samples(planned, version.covered)
        waiting = waiting_rows(version, planned, self.commits)
        yield from check_withheld(version, waiting, self.versions.get(version.number - 1))
        counts: Counter[Identity] = Counter()
        keys: dict[Key, set[str]] = defaultdict(set)  # a row -> the files that have it
        spans = {
            (span.uri, span.etag, position): span
            for entry in planned
            for span in entry.spans
            for position in range(span.start, span.stop)
        }
        for row in version.outcomes:
            identity = row["uri"], row["etag"], row["position"], row["index"]
            counts[identity] += 1
            name = f"version {version.number}: {row['id']} of {short(row['uri'])} row {row['position']}"
            if identity not in expected:
                yield Problem("superseded", f"{name} is superseded.")
                continue
            keys[self._key(spans[identity[:3]], row["position"])].add(row["uri"])
            commit = self.commits.get(row["shard"])
            if row["shard"] not in expected[identity]:
                yield Problem("retry", f"{name} is of shard {row['shard']}, but {expected[identity]} is its last one.")
            elif commit is None:
                yield Problem("commit", f"{name} is of shard {row['shard']}, which has no commit.")
            else:
                identifier, outcome = commit.samples[identity]
                if identifier != row["id"]:
                    yield Problem("ids", f"{name} is {identifier} in its commit.")
                if (outcome == "quarantined") != (row["outcome"] == "quarantined"):
                    yield Problem("outcome", f"{name} is {row['outcome']}, and {outcome} in its commit.")
                elif not version.refilter and not follows(row, outcome):
                    yield Problem("outcome", f"{name} is {row['outcome']} {row['reasons']}, {outcome} in its commit.")
        for identity, times in counts.items():
            if times > 1:
                yield Problem("doubled", f"version {version.number}: {times} times {shown(identity)}.")
        missing = [identity for identity in expected if identity not in counts]
        withheld = [identity for identity in missing if identity[:3] in waiting]
        for identity in withheld:
            keys[self._key(spans[identity[:3]], identity[2])].add(identity[0])
        missing = [identity for identity in missing if not self._is_elsewhere(spans, identity, current, keys)]
        for identity in missing:
            if identity[:3] not in waiting:
                yield Problem("lost", f"version {version.number}: {shown(identity)} is in no outcome.")
        yield from check_left_out(version, planned, set(missing) & set(withheld))
        yield from self._doubled_rows(version)
        yield from check_sums(version)

    def _key(self, span: Rows, position: int) -> Key:
        """Return what identifies a row: its id, or its default id and text if it has no id."""
        row = self.contents[span.uri, span.etag][position]
        return ("id", row.id) if row.id else ("default", f"{span.path}:{position}", row.text)

    def _is_elsewhere(
        self,
        spans: Mapping[tuple[str, str, int], Rows],
        identity: Identity,
        current: Mapping[str, tuple[str, int]],
        keys: Mapping[Key, set[str]],
    ) -> bool:
        """Return whether the row of a sample has moved: the version has it from a file that was planned later.

        A row without an id may also be gone if its file was moved and then overwritten, because its default id belongs
        to the file in the new place.
        """
        uri, etag, position, _ = identity
        span = spans[uri, etag, position]
        later = {file for file, (_, plan) in current.items() if plan > current[uri][1]} - {uri}
        if keys.get(self._key(span, position), set()) & later:
            return True
        moved = {other.uri for other in spans.values() if (other.etag, other.path) == (etag, span.path)} & later
        return not self.contents[uri, etag][position].id and any(current[file][0] != etag for file in moved)

    def _doubled_rows(self, version: Published) -> Iterator[Problem]:
        """Find rows that are there twice, once with an id that could not be read, because their file was moved."""
        known: set[tuple[str, int]] = set()  # (etag, position) whose id is in a commit
        for commit in self.commits.values():
            for (uri, etag, position, _), (name, _) in commit.samples.items():
                row = self.contents[uri, etag][position]
                if row.id and name.rsplit("/", 1)[0] == row.id:
                    known.add((etag, position))
        places: dict[tuple[str, int], set[str]] = defaultdict(set)
        for row in version.outcomes:
            if (row["etag"], row["position"]) in known:
                identifier = self.contents[row["uri"], row["etag"]][row["position"]].id
                places[str(identifier), row["index"]].add(row["uri"])
        for (identifier, index), uris in places.items():
            if len(uris) > 1:
                named = ", ".join(sorted(map(short, uris)))
                yield Problem("doubled row", f"version {version.number}: {identifier}/{index} comes from {named}.")

    def _check_tables(self, version: Published) -> Iterator[Problem]:
        """Check that the tables hold exactly the rows of the outcomes, with the text of the input."""
        rows_of: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in version.outcomes:
            rows_of[row["file"]].append(row)
        named = {file["path"]: file for file in version.files}
        sizes: dict[str, Counter[str]] = defaultdict(Counter)
        for file in named.values():
            sizes[file["outcome"]].update(files=1, rows=file["rows"], bytes=file["bytes"])
        if sizes != version.fields["sizes"]:
            yield Problem("counts", f"version {version.number}: its files do not add up to {version.fields['sizes']}.")
        if rows_of.keys() != named.keys():
            yield Problem("file", f"version {version.number}: outcomes and files name different tables.")
        clouds = {cloud["path"] for file in named.values() for cloud in file["clouds"]}
        clouds |= {
            item["path"] for commit in self.commits.values() for item in commit.objects if item["kind"] == "points"
        }
        places: dict[tuple[str, int, int], set[str]] = defaultdict(set)  # a sample by content -> files that have it
        for row in version.outcomes:
            places[row["etag"], row["position"], row["index"]].add(row["uri"])
        for path in rows_of.keys() & named.keys() & self.files.keys():
            table = table_rows(self.objects.read(path), COLUMNS)
            ids = Counter(row["id"] for row in table)
            if ids != Counter(row["id"] for row in rows_of[path]) or len(table) != named[path]["rows"]:
                yield Problem("ids", f"version {version.number}: {path} holds {sorted(ids)}.")
                continue
            outcome_of = {row["id"]: row for row in rows_of[path]}
            for row in table:
                outcome = outcome_of[row["id"]]
                text = self.contents[outcome["uri"], outcome["etag"]][outcome["position"]].text
                was_read = (outcome["uri"], outcome["etag"]) in self.read or Path(
                    outcome["uri"]
                ).exists()  # if so, the file is a copy
                if NEVER_READ in str(row.get("error")) and not was_read:
                    others = places[outcome["etag"], outcome["position"], outcome["index"]] - {outcome["uri"]}
                    if others:
                        names = f"{short(outcome['uri'])}, which was never read, and of {short(min(others))}"
                        yield Problem("doubled row", f"version {version.number}: {row['id']} is of {names}.")
                if outcome["outcome"] != named[path]["outcome"]:
                    yield Problem(
                        "outcome", f"version {version.number}: {row['id']} is {outcome['outcome']} in {path}."
                    )
                if outcome["outcome"] != "quarantined" and row["prompt"] != text:
                    yield Problem("text", f"version {version.number}: {row['id']} has {row['prompt']!r}, not {text!r}.")
                if (
                    version.refilter
                    and outcome["outcome"] != "quarantined"
                    and not is_by(version.fields["criteria"], row, outcome)
                ):
                    yield Problem(
                        "criteria",
                        f"version {version.number}: {row['id']} is {outcome['outcome']} against the criteria.",
                    )
                if outcome["outcome"] == "kept" and row["pointcloud"] not in clouds:
                    yield Problem(
                        "cloud", f"version {version.number}: no file lists {row['pointcloud']} of {row['id']}."
                    )

    def _check_objects(self) -> Iterator[Problem]:
        """Check the bytes of every object that a commit or a retained version names."""
        for commit in self.commits.values():
            for item in commit.objects:
                yield from self._check_bytes(f"commit {commit.shard}", item["path"], item["bytes"], item["sha256"])
        for version in self.retained():
            for file in version.files:
                for item in (file, *file["clouds"]):
                    yield from self._check_bytes(
                        f"version {version.number}", item["path"], item["bytes"], item["sha256"]
                    )

    def _check_bytes(self, owner: str, path: str, size: int | None, sha256: str) -> Iterator[Problem]:
        stamp = self.files.get(path)
        if stamp is None:
            yield Problem("file", f"{owner}: {path} is missing.")
        elif size is not None and stamp[0] != size:
            yield Problem("file", f"{owner}: {path} has {stamp[0]} bytes, not {size}.")
        else:
            if self._intact.get(path, ((0, ""), ""))[0] != stamp:
                self._intact[path] = stamp, hashlib.sha256(self.objects.read(path)).hexdigest()
            if self._intact[path][1] != sha256:
                yield Problem("file", f"{owner}: {path} has another SHA-256.")

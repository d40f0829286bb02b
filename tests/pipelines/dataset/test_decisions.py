"""Dataset-wide decisions: made in the order of the plan, deterministic, and never revoked."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jointdit.errors import SpecError
from pipelines.dataset.decisions import Criteria, Decided
from pipelines.dataset.refilter import refilter
from pipelines.dataset.settling import DECIDED, Settling
from pipelines.dataset.validation.validate import validate
from pipelines.ledger.versions import Key, read_outcomes, read_version
from pipelines.plan.regeneration import extend_with_regeneration
from pipelines.plan.retry import plan_retry
from pipelines.quality import KeepBest, NearDuplicate
from pipelines.quality.near_duplicate import perceptual_hash
from pipelines.run.rounds import pending_shards
from pipelines.spec.job import load_spec
from tests.edited_segments import edit_segments
from tests.local_job import LocalJob


class Facts(NamedTuple):
    """What is stored of a sample."""

    score: float | None
    phash: str | None


def sample(row: int, index: int, plan: int, outcome: str = "kept") -> Decided:
    reasons = ("depth_range: flat",) if outcome == "rejected" else ()
    return Decided(f"a:{row}/{index}", f"shard{plan}", outcome, reasons, outcome, reasons)


@functools.cache
def database() -> duckdb.DuckDBPyConnection:
    """A database in memory, which all tests share: opening one takes longer than a test."""
    return duckdb.connect(config={"threads": 1})


def settled(
    decided: Sequence[Decided], criteria: Criteria, facts: Mapping[Key, Facts], held: Mapping[Key, Decided]
) -> list[Decided]:
    """Settle samples, some of which an earlier version decided."""
    standing = [held.get(each.key, each) for each in decided]
    rows = [
        {
            **asdict(each),
            "plan": 1,
            "place": place,
            "number": 0,
            "phash": facts[each.key].phash,
            "score": facts[each.key].score,
        }
        for place, each in enumerate(standing)
    ]
    settling = Settling(database())
    settling.add("decided", pa.Table.from_pylist(rows, DECIDED))
    settling.settle(criteria, "joint")
    lost = dict(settling.connection.execute("select place, reason from lost").fetchall())
    assert lost == losers(standing, criteria, facts)
    return [
        replace(each, outcome="rejected", reasons=(lost[place],)) if place in lost else each
        for place, each in enumerate(standing)
    ]


def losers(decided: Sequence[Decided], criteria: Criteria, facts: Mapping[Key, Facts]) -> dict[int, str]:
    """The reference: one sample after the other."""
    lost: dict[int, str] = {}
    best, kept = criteria.keep_best, [n for n, each in enumerate(decided) if each.since and each.outcome == "kept"]
    taken = Counter(decided[n].id.rpartition("/")[0] for n in kept)
    new = [n for n, each in enumerate(decided) if not each.since and each.outcome == "kept"]
    for n in sorted(new, key=lambda n: best.rank(facts[decided[n].key].score)) if best else ():
        taken[row := decided[n].id.rpartition("/")[0]] += 1
        if taken[row] > best.k:
            score = facts[decided[n].key].score
            value = "is missing" if score is None else f"is {score:.4g}"
            lost[n] = f"keep_best: {best.by} {value}, not among the {best.k} {best.order} of its row"
    before = sorted(kept, key=lambda n: decided[n].since)
    for n in new if criteria.max_distance is not None else ():
        if n not in lost:
            hashes = {other: int(facts[decided[other].key].phash, 16) for other in (*before, n)}
            distance = {other: (hashes[other] ^ hashes[n]).bit_count() for other in before}
            nearest = min(before, key=lambda other: distance[other], default=n)
            if nearest != n and distance[nearest] <= criteria.max_distance:
                lost[n] = f"near_duplicate: {distance[nearest]} of 64 bits from {decided[nearest].id}"
            else:
                before.append(n)
    return lost


OUTCOMES = st.sampled_from(["kept", "kept", "kept", "rejected", "quarantined"])
SAMPLES = st.lists(
    st.tuples(st.integers(0, 3), OUTCOMES, st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=14
)  # (row, outcome at the commit, score, image)
CRITERIA = st.builds(
    Criteria,
    st.sampled_from([(), (NearDuplicate(max_distance=1),)]),
    st.sampled_from([None, *(KeepBest(k=k, by="s", order=o) for k in (1, 2) for o in ("lowest", "highest"))]),
)


@settings(max_examples=20, deadline=None)
@given(SAMPLES, CRITERIA, st.data())
def test_each_sample_ends_once_and_no_later_run_changes_a_winner(
    samples: Sequence[tuple[int, str, int, int]], criteria: Criteria, data: st.DataObject
) -> None:
    """Published in one go, again, or after each of some cuts: what a version said stands in all later ones."""
    plans = sorted(data.draw(st.lists(st.integers(1, 3), min_size=len(samples), max_size=len(samples))))
    index = Counter[int]()
    decided: list[Decided] = []
    facts: dict[Key, Facts] = {}
    for (row, outcome, score, image), plan in zip(samples, plans, strict=True):
        each = sample(row, index[row], plan, outcome)
        index[row] += 1
        decided.append(each)
        facts[each.key] = Facts(float(score), f"{1 << (4 * image):016x}" if outcome != "quarantined" else None)
    held: dict[Key, Decided] = {}
    for plan in sorted(set(plans)):
        part = [each for each in decided if each.shard <= f"shard{plan}"]
        version = settled(part, criteria, facts, held)
        assert [each.key for each in version] == [each.key for each in part], "each once, in the order of the plan"
        assert version == settled(part, criteria, facts, held)
        now = {each.key: replace(each, since=each.since or plan) for each in version}
        assert {key: now[key] for key in held} == held
        for before, after in zip(part, version, strict=True):
            assert after.outcome == before.outcome or (before.outcome, after.outcome) == ("kept", "rejected")
            assert bool(after.reasons) == (after.outcome == "rejected")
        kept = [each for each in version if each.outcome == "kept"]
        if criteria.keep_best is not None:
            assert max(Counter(each.id.rpartition("/")[0] for each in kept).values(), default=0) <= criteria.keep_best.k
        if criteria.max_distance is not None:
            assert len({facts[each.key].phash for each in kept}) == len(kept)
        held = now
    assert settled(decided, criteria, facts, held) == list(held.values()), (
        "a run that finds nothing new changes nothing"
    )


def test_the_best_of_a_row_are_those_of_its_score_and_the_first_of_equals() -> None:
    decided = [sample(0, n, 1) for n in range(5)]
    scores = [0.5, 0.1, float("nan"), 0.1, None]
    facts = {each.key: Facts(score, None) for each, score in zip(decided, scores, strict=True)}

    def kept(k: int, order: str) -> list[int]:
        ends = settled(decided, Criteria((), KeepBest(k=k, by="s", order=order)), facts, {})
        return [number for number, each in enumerate(ends) if each.outcome == "kept"]

    assert kept(1, "lowest") == [1]
    assert kept(2, "lowest") == [1, 3]
    assert kept(1, "highest") == [0]
    assert kept(4, "highest") == [0, 1, 2, 3], "what has no score is not better than what has one"
    assert kept(9, "lowest") == [0, 1, 2, 3, 4]


def test_a_loser_of_its_row_does_not_drop_a_like_image_of_another() -> None:
    decided = [sample(0, 0, 1), sample(0, 1, 1), sample(1, 0, 1)]
    facts = dict(
        zip(
            [each.key for each in decided],
            [Facts(1.0, "f" * 16), Facts(0.0, "0" * 16), Facts(0.0, "f" * 16)],
            strict=True,
        )
    )
    criteria = Criteria((NearDuplicate(),), KeepBest(k=1, by="s", order="lowest"))
    ends = settled(decided, criteria, facts, {})
    assert [each.outcome for each in ends] == ["rejected", "kept", "kept"]


def blobs(noise: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(noise.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)


def test_the_hash_is_of_what_a_image_shows() -> None:
    noise = np.random.default_rng(0)
    image = Image.fromarray(noise.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(
        (96, 64), Image.Resampling.BICUBIC
    )
    other = Image.fromarray(noise.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(
        (96, 64), Image.Resampling.BICUBIC
    )

    def distance(one: Image.Image, two: Image.Image) -> int:
        hashes = [int(perceptual_hash(np.asarray(each)), 16) for each in (one, two)]
        return (hashes[0] ^ hashes[1]).bit_count()

    brighter = image.point(lambda value: round(0.8 * value + 20))
    assert distance(image, image.resize((192, 128))) <= 4
    assert distance(image, brighter) <= 4
    assert distance(image, other) > 16
    assert distance(image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) > 16
    assert perceptual_hash(np.zeros((20, 20, 3), np.uint8)) == "0" * 16
    assert perceptual_hash(np.full((20, 20, 3), 200, np.uint8)) == "8" + "0" * 15


@pytest.fixture
def twins(make_job, tmp_path: Path) -> LocalJob:
    """Images in three shards: c repeats a in another size, e repeats b, d and f are like none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    noise = np.random.default_rng(3)
    seen = [blobs(noise, (48, 32)) for _ in range(4)]
    for name, number in zip("abcdef", (0, 1, 0, 2, 1, 3), strict=True):
        (seen[number].resize((96, 64)) if name in "ce" else seen[number]).save(folder / f"{name}.png")
    quality = {"filters": [{"kind": "near_duplicate"}]}
    return make_job(
        task="depth", input={"uri": str(folder), "samples_per_row": 2}, quality=quality, output={"shard_rows": 2}
    )


def outcomes(job: LocalJob, number: int) -> dict[str, str]:
    table = read_outcomes(job.context.storage, read_version(job.context.storage, number))
    return {
        identifier: "; ".join([outcome, *reasons])
        for identifier, outcome, reasons in zip(
            *(table[name].to_pylist() for name in ("id", "outcome", "reasons")), strict=True
        )
    }


def test_near_duplicates_are_dropped_whatever_the_order_of_shards(twins: LocalJob, tmp_path: Path) -> None:
    job, storage = twins, twins.context.storage
    job.plan()
    for entry in reversed(pending_shards(job.ledger)):
        job.run_shard(entry)
    version, _ = job.publish()
    found = outcomes(job, 1)
    dropped = {name[0]: outcome for name, outcome in found.items() if not outcome.startswith("kept")}
    assert sorted(dropped) == ["c", "e"], "and samples of one row, which share its image, stay"
    assert dropped["c"].startswith("rejected; near_duplicate: ")
    assert dropped["c"].endswith("bits from a.png:0/0")
    assert (version.counts, version.reasons) == (
        {"kept": 8, "rejected": 4, "quarantined": 0},
        {"near_duplicate": 4},
    )
    assert validate(storage.uri).problems == []
    assert job.complete() == version, "nothing new publishes nothing"

    (tmp_path / "photos" / "0.png").write_bytes((tmp_path / "photos" / "a.png").read_bytes())
    blobs(np.random.default_rng(9), (48, 32)).save(tmp_path / "photos" / "a.png")  # it supersedes the first a
    job.complete()
    second = outcomes(job, 2)
    assert {name: second[name] for name in found} == found, "c stays out although the first a is gone"
    assert second["0.png:0/0"] == "kept", "and nothing that is kept looks like it"
    assert validate(storage.uri).problems == []
    assert plan_retry(storage.uri, ["rejected"]).counts == {"rejected": 0}, "they would lose again"

    everything = refilter(storage.uri, ["quality.filters=[]"])
    assert everything.version.counts == {"kept": 14, "rejected": 0, "quarantined": 0}
    back = refilter(storage.uri, ["quality.filters=[{kind: near_duplicate}]"])
    assert outcomes(job, back.version.number) == second, "of c and 0, which are alike, the first is not kept now either"
    contents = [
        {(file.shard, file.outcome, file.sha256) for file in v.files} for v in (back.version, read_version(storage, 2))
    ]
    assert contents[0] == contents[1], "the tables are as they were, as copies: those of version 2 may be deleted"
    assert validate(storage.uri).problems == []
    far = refilter(storage.uri, ["quality.filters=[{kind: near_duplicate, max_distance: 5}]"]).version
    assert outcomes(job, far.number)["c.png:0/0"] == "kept", "other criteria decide all anew, in the order of the plan"
    assert outcomes(job, far.number)["0.png:0/0"].startswith("rejected; near_duplicate: ")
    assert validate(storage.uri).problems == []


def test_a_decision_that_was_tampered_with_is_found(twins: LocalJob) -> None:
    twins.complete()
    storage = twins.context.storage

    def keep(rows: list[dict]) -> None:
        for row in rows:
            row["outcome"] = "kept" if row["id"].startswith("c") else row["outcome"]

    edit_segments(storage, samples=keep)
    problems = " ".join(validate(storage.uri).problems)
    assert "sample c.png:0/0 is rejected by the stored scores of shard" in problems


def test_the_best_of_all_rounds_is_kept(make_job) -> None:
    """With new seeds for what the filter rejected; a later run with more rounds changes no winner."""
    best = {"k": 1, "by": "depth_span", "order": "highest"}
    quality = {"filters": [{"kind": "depth_range"}], "keep_best": best, "regenerate": 1}
    job = make_job(["a", "FLAT", "b"], quality=quality, input={"samples_per_row": 3})
    job.plan()
    job.run()
    assert extend_with_regeneration(job.context.spec, job.context.fingerprint, job.ledger) == 3
    job.run()
    version, _ = job.publish()
    assert version.counts == {"kept": 2, "rejected": 10, "quarantined": 0}
    assert version.reasons == {"depth_range": 6, "keep_best": 4}
    assert extend_with_regeneration(job.context.spec, job.context.fingerprint, job.ledger) == 0, (
        "losers get no new seed"
    )
    assert validate(job.context.storage.uri).problems == []
    two = refilter(job.context.storage.uri, ["quality.keep_best.k=2"]).version
    assert two.counts["kept"] == 4
    winners = {name for name, outcome in outcomes(job, 1).items() if outcome == "kept"}
    assert winners < {name for name, outcome in outcomes(job, 2).items() if outcome == "kept"}
    assert (
        refilter(job.context.storage.uri, ["quality.keep_best=null", "quality.filters=[]"]).version.counts["kept"] == 12
    )
    assert validate(job.context.storage.uri).problems == []


def test_keep_best_in_a_spec() -> None:
    data = {"task": "joint", "input": {"uri": "a.txt"}, "output": {"uri": "b"}}
    with pytest.raises(
        SpecError, match=r"quality.keep_best: by is 'beauty', which is no score: choose one of depth_span"
    ):
        load_spec({**data, "quality": {"keep_best": {"by": "beauty", "order": "lowest"}}})
    with pytest.raises(SpecError, match=r"quality.keep_best.order is missing"):
        load_spec({**data, "quality": {"keep_best": {"by": "depth_span"}}})
    quality = load_spec(
        {**data, "quality": {"keep_best": {"by": "self_consistency_delta1", "order": "highest"}}}
    ).quality
    assert quality.scores == ({"kind": "self_consistency"},), "a score that costs a model is asked for by it"
    with pytest.raises(SpecError, match=r"quality.filters.0.max_distance is 70"):
        load_spec({**data, "quality": {"filters": [{"kind": "near_duplicate", "max_distance": 70}]}})

"""The account of a storm finds lost, misplaced, unpublished and different samples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.store.storage import Storage
from tests.chaos.account import Account, take_account
from tests.chaos.corpus import POISON, Planted, plant_images, plant_prompts
from tests.local_job import LocalJob, make_job

__all__ = ["make_job"]
PROMPTS = ["a", "b", "", "c", "d", "e"]


@pytest.fixture
def jobs(make_job, tmp_path: Path) -> tuple[LocalJob, LocalJob, Planted]:
    """Return a job, the same job with another output, and the expected outcomes."""
    planted = Planted({})
    for number, prompt in enumerate(PROMPTS):
        planted.add(f"prompts.txt:{number}", "kept" if prompt else "quarantined")
    stormy = make_job(PROMPTS, output={"points": "ply"})
    calm = make_job(PROMPTS, output={"points": "ply", "uri": str(tmp_path / "calm")})
    return stormy, calm, planted


def account_of(stormy: LocalJob, calm: LocalJob, planted: Planted, tolerance: float = 0.0) -> Account:
    return take_account("job", planted, stormy.context.storage.uri, calm.context.storage.uri, tolerance)


def test_an_intact_job_has_no_problems(jobs) -> None:
    stormy, calm, planted = jobs
    stormy.complete()
    calm.complete()
    account = account_of(stormy, calm, planted)
    assert account.problems == []
    assert (account.planned, account.compared, account.counts["quarantined"]) == (6, 5, 1)


def test_lost_misplaced_and_unpublished_samples_are_problems(jobs) -> None:
    stormy, calm, planted = jobs
    stormy.plan()
    assert account_of(stormy, calm, planted).problems == ["no version is published."]
    stormy.complete()
    calm.complete()
    planted.add("prompts.txt:6", "kept")
    account = account_of(stormy, calm, planted)
    assert account.lost == 1
    assert "1 samples lost: prompts.txt:6/0" in account.problems
    planted.add("prompts.txt:0", "quarantined")
    account = account_of(stormy, calm, planted)
    assert (account.lost, account.misplaced) == (1, 1)
    assert "1 samples misplaced: prompts.txt:0/0: kept and not quarantined" in account.problems


def test_different_pixels_and_orphaned_objects_are_problems(jobs, make_job, tmp_path: Path) -> None:
    stormy, _, planted = jobs
    stormy.complete()
    other = make_job(PROMPTS, output={"points": "ply", "uri": str(tmp_path / "other")}, seed=1)
    other.complete()
    for tolerance in (0.0, 2.0):
        account = account_of(stormy, other, planted, tolerance)
        assert account.different == 5
        assert "differs from the calm run in" in account.problems[0]
    stormy.context.storage.write_bytes("data/0123-left.parquet", b"orphaned")
    assert any("that no commit names" in problem for problem in account_of(stormy, stormy, planted).problems)


def test_a_seed_plants_the_same_input(tmp_path: Path) -> None:
    def planted(name: str, seed: int) -> tuple[list[Planted], dict[str, str]]:
        storage = Storage(str(tmp_path / name))
        jobs = [
            plant_prompts(Storage(f"{storage.uri}/prompts"), 700, seed, deadly=True),
            plant_images(Storage(f"{storage.uri}/images"), 300, seed),
        ]
        content = {file.path: storage.read_bytes(file.path).hex() for file in storage.list("")}
        return [replace(job, job={}) for job in jobs], content

    assert planted("one", 1) == planted("two", 1)
    assert planted("one", 1)[1] != planted("three", 2)[1]
    prompts, images = planted("one", 1)[0]
    assert len(prompts.quarantined) == sum(POISON.values()) + 8
    assert len(images.quarantined) == 5 * 3
    assert len(images.to_delete) == 3

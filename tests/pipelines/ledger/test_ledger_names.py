"""Foreign files in the ledger's folders are never read, never harmful, and always reported."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jointdit.errors import StoreError
from pipelines.dataset.diff import list_versions
from pipelines.dataset.garbage import collect_garbage
from pipelines.dataset.refilter import refilter
from pipelines.dataset.status import read_status
from pipelines.dataset.validation.validate import validate
from pipelines.ledger.entries import Commit, new_token
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.names import NAMES, foreign_names, matches, versions_in
from pipelines.ledger.reports import FOLDER as REPORTS
from pipelines.ledger.reports import report_names
from pipelines.plan.retry import plan_retry
from pipelines.store.storage import Storage

SHARD = "0123456789abcdef0123"
ROOT = Path(__file__).parents[3]
OURS = [
    "_plan/000001.parquet",
    "_plan/1000000.parquet",
    f"_commits/{SHARD}.json",
    f"_crashes/{SHARD}/1.json",
    f"_crashes/{SHARD}/12.json",
    "_versions/000001/version.json",
    "_versions/000001/outcomes.parquet",
    "_versions/000001/pruned.json",
    "_leases/0123456789abcdef.json",
    "_reports/20261130T120000-0123456789abcdef.json",
    "_reports/20261130T120000-0123456789abcdef.md",
    "_rollup/commits.parquet",
    "_probe/0123456789abcdef",
]
LITTER = [".DS_Store", "Thumbs.db", "desktop.ini", "lost+found/x", "notes.txt", ".nfs000000000001"]


def spoilt(name: str) -> list[str]:
    """Names that programs make of a name of ours."""
    folder, _, last = name.rpartition("/")
    stem, dot, suffix = last.partition(".")
    lasts = [
        f"._{last}",
        f"{stem} (copy){dot}{suffix}",
        f"{stem}~1{dot}{suffix}",
        f"{last}.part",
        f"{last}~",
        f".{last}.swp",
    ]
    lasts += [
        f"#{last}#",
        f"{last}\n",
        f" {last}",
        f"{last}/{last}",
        f"{last}.tmp",
        f"{last}?versionId=3",
        f"\udcff{last}",
    ]
    lasts += [last.replace("1", "\N{ARABIC-INDIC DIGIT ONE}", 1) if "1" in last else f"x{last}"]
    return [f"{folder}/{each}" for each in lasts]


FOREIGN = sorted({each for name in OURS for each in spoilt(name)} | {f"{f}/{each}" for f in NAMES for each in LITTER})
FOREIGN += ["_plan/1.parquet", "_plan/0000001.parquet", "_versions/1/version.json", "_versions/000001 (1)/version.json"]
FOREIGN += [f"_crashes/{SHARD}/0.json", f"_crashes/{SHARD}/01.json", f"_crashes/{SHARD} (copy)/1.json"]


def is_ours(name: str) -> bool:
    folder, _, rest = name.partition("/")
    return bool(list(matches(folder, [rest])))


def test_each_name_that_is_written_is_ours() -> None:
    assert [name for name in OURS if not is_ours(name)] == []
    assert {name.partition("/")[0] for name in OURS} == set(NAMES)
    assert REPORTS in NAMES


def test_what_programs_make_of_a_name_is_foreign() -> None:
    assert [name for name in FOREIGN if is_ours(name)] == []


@given(st.sampled_from(sorted(NAMES)), st.text(max_size=40))
def test_a_name_is_read_only_if_it_is_written_back_the_same(folder: str, text: str) -> None:
    """Whatever the name: digits of other scripts, signs, spaces and line ends are never taken for numbers."""
    for match in matches(folder, [text, f"{text}.json", f"{text}.parquet", f"{text}/version.json"]):
        if number := match.groupdict().get("number"):
            assert match[0].isascii()
            assert number == (f"{int(number):06d}" if folder != "_crashes" else str(int(number)))


def litter(root: Path) -> list[str]:
    """Leave all of it in a ledger on the local disk; returns what can be mentioned."""
    for name in FOREIGN:
        path = root / name
        if path.parent.is_file():
            continue  # where a folder is in the place of a file of ours, which another test does
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not of the ledger")
    for folder in NAMES:
        os.mkfifo(root / folder / "000009.parquet")
        os.mkfifo(root / folder / f"{SHARD[::-1]}.json")
        (root / folder / "000008.parquet").symlink_to("nowhere")
        (root / folder / "000007.parquet").symlink_to("000007.parquet")
        (root / folder / "loop").symlink_to(root)
        (root / folder / "000006.parquet").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(root / "_commits")
        server.bind("abc.json")
    os.chdir(ROOT)
    return FOREIGN


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    monkeypatch.chdir(ROOT)
    ledger = Ledger(Storage(str(tmp_path / "out")))
    ledger.append_plan(1, [])
    ledger.commit(Commit(SHARD, new_token(), (), ()))
    ledger.record_crash(SHARD, {"stage": "read"})
    ledger.storage.write_bytes("_versions/000001/version.json", b"{}")
    ledger.storage.write_bytes("_versions/000001/outcomes.parquet", b"x")
    ledger.storage.write_bytes("_versions/000002/outcomes.parquet", b"x")
    return ledger


def facts(ledger: Ledger) -> tuple[object, ...]:
    crashes = [record["stage"] for record in ledger.crashes(SHARD)]
    plans = ledger.plan_numbers(), list(ledger.plan_tables())
    return plans, ledger.committed(), ledger.shards_with_crashes(), crashes, versions_in(ledger.storage)


def test_a_ledger_full_of_litter_says_what_it_said_before(ledger: Ledger) -> None:
    before = facts(ledger)
    assert before[-1] == {1: {"version.json", "outcomes.parquet"}, 2: {"outcomes.parquet"}}
    assert ledger.foreign_names() == []
    litter(Path(ledger.storage.uri))
    assert facts(Ledger(ledger.storage)) == before
    assert ledger.read_commits(ledger.committed()).keys() == {SHARD}
    ledger.record_crash(SHARD, {"stage": "finish"})
    assert [record["stage"] for record in ledger.crashes(SHARD)] == ["read", "finish"]


def test_what_is_foreign_is_mentioned_by_a_printable_name(ledger: Ledger) -> None:
    litter(Path(ledger.storage.uri))
    mentioned = ledger.foreign_names()
    assert all(name.isprintable() for name in mentioned)
    assert {"_plan/.DS_Store", "_commits/lost+found/x", f"_crashes/{SHARD} (copy)/1.json"} <= set(mentioned)
    assert {"_plan/000009.parquet", "_plan/000008.parquet", "_plan/000007.parquet", "_plan/loop"} & set(mentioned) == {
        "_plan/loop",
    }, "a pipe or a broken link under a name of ours is found where it is read"
    assert "_plan/000006.parquet/" in mentioned, "a folder where a file is expected"
    assert any("\\udcff" in name for name in mentioned)


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """As a user who may not read everything."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folder_of_the_file_system_that_may_not_be_read_is_in_nobodys_way() -> None:
    with tempfile.TemporaryDirectory() as root:  # not under pytest's folders, which other users may not enter
        storage = Storage(f"{root}/out")
        ledger = Ledger(storage)
        ledger.commit(Commit(SHARD, new_token(), (), ()))
        os.chmod(root, 0o755)
        closed = [Path(storage.uri, folder, "lost+found") for folder in ("_commits", "_crashes", "")]
        for folder in closed:
            folder.mkdir(parents=True)
            (folder / "x").write_text("x")
            folder.chmod(0)
        with nobody():
            assert (ledger.plan_numbers(), ledger.committed(), ledger.shards_with_crashes()) == ([], {SHARD}, set())
            assert [each.path for each in storage.list()] == [f"_commits/{SHARD}.json"]
            assert ledger.foreign_names() == ["_commits/lost+found/", "_crashes/lost+found/"]
        Path(storage.uri, "_commits").chmod(0)
        with (
            nobody(),
            pytest.raises(StoreError, match=r"/out/_commits: no access \(EACCES\): check that this user may"),
        ):
            ledger.committed()
        for folder in (Path(storage.uri, "_commits"), *closed):
            folder.chmod(0o700)


@pytest.mark.parametrize("made", ["folder", "full folder", "pipe", "broken link"])
def test_something_else_under_a_name_of_ours_is_one_sentence(made: str, ledger: Ledger) -> None:
    """It is no lost race: a writer that takes it for one looks for the winner again and again."""
    root = Path(ledger.storage.uri)
    shard = SHARD[::-1]
    names = ["_plan/000002.parquet", f"_commits/{shard}.json", f"_crashes/{shard}/1.json"]
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if made == "pipe":
            os.mkfifo(path)
        elif made == "broken link":
            path.symlink_to("nowhere")
        else:
            path.mkdir()
            if made == "full folder":
                (path / "x").write_text("x")
    assert ledger.plan_numbers() == [1]
    assert ledger.committed() == ledger.shards_with_crashes() == {SHARD}
    assert not ledger.is_committed(shard)
    writes = [
        lambda: ledger.append_plan(2, []),
        lambda: ledger.commit(Commit(shard, new_token(), (), ())),
        lambda: ledger.record_crash(shard, {"stage": "read"}),
    ]
    for name, write in zip(names, writes, strict=True):
        with pytest.raises(StoreError, match=rf"^{re.escape(str(root / name))} is no regular file: move it away\.$"):
            write()


def test_a_copy_of_a_report_is_no_run(tmp_path: Path) -> None:
    """Its costs would count twice."""
    name = "20261130T120000-0123456789abcdef"
    for each in (f"{name}.json", f"{name}.md", f"{name} (copy).json", f"._{name}.json"):
        (tmp_path / REPORTS).mkdir(exist_ok=True)
        (tmp_path / REPORTS / each).write_text("{}")
    assert report_names(Storage(str(tmp_path))) == [f"{REPORTS}/{name}.json"]


def test_litter_in_a_bucket(s3) -> None:
    storage = Storage(s3.make_bucket("litter") + "/out")
    ledger = Ledger(storage)
    ledger.commit(Commit(SHARD, new_token(), (), ()))
    root = storage.path("")
    for name in ("_plan/", "_plan/000001 (copy).parquet", "_plan/.DS_Store", f"_commits/{SHARD}.json.part"):
        bucket, _, key = f"{root}/{name}".partition("/")
        storage.fs.call_s3("put_object", Bucket=bucket, Key=key, Body=b"" if name.endswith("/") else b"x")
    assert (ledger.plan_numbers(), ledger.committed()) == ([], {SHARD})
    assert not storage.exists("_plan"), "a folder is no object"
    mentioned = [f"_commits/{SHARD}.json.part", "_plan/.DS_Store", "_plan/000001 (copy).parquet"]
    assert foreign_names(storage) == mentioned


def test_a_littered_output_works_and_is_mentioned(make_job, tmp_path: Path) -> None:
    """A stray file costs a line of `validate` and nothing else: no command fails, and gc goes on."""
    job = make_job(["a", "FLAT"])
    job.complete()
    uri, out = job.context.storage.uri, tmp_path / "out"
    litter = ["_plan/._000001.parquet", "_plan/000001 (copy).parquet", "_commits/.DS_Store", "_crashes/Thumbs.db"]
    litter += ["_versions/000001 (1)/version.json", "_versions/000001/._version.json", "_versions/lost+found/x"]
    for name in litter:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(b"of somebody else")
    (tmp_path / "prompts.txt").write_text("a\nFLAT\nb\n")
    assert job.complete().number == 2
    plan_retry(uri, ["quarantined"])
    refilter(uri, ["quality.filters=[{kind: depth_range, min_span: 0.2}]"])
    assert collect_garbage(uri, 0).objects == ()
    assert read_status(uri).committed_samples == 3
    assert [version.number for version in list_versions(uri)] == [1, 2, 3]
    found = validate(uri)
    assert found.problems == []
    assert sorted(found.notes) == sorted(f"{name} is no file of the ledger and is ignored." for name in litter)
    assert all((out / name).exists() for name in litter)

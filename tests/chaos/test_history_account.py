"""The account of histories finds each planted fault, and none in an intact dataset."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.chaos.history_account import Account
from tests.chaos.ledger_account import Planned as PlannedRows
from tests.chaos.ledger_account import Rows, expected_samples, read_plan
from tests.chaos.objects import LocalObjects
from tests.chaos.world import InputRow
from tests.local_job import job_in

ROOT = Path(__file__).parents[2]
Table = list[dict[str, Any]]
ROWS = [
    InputRow("r1", "a lamp"),
    InputRow("r2", "FLAT"),
    InputRow("r3", "NAN"),
    InputRow("r4", "a chair"),
    InputRow("r5", "a door"),
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job with one input file and a published version with samples of all outcomes."""
    folder = tmp_path_factory.mktemp("dataset")
    (folder / "a.csv").write_text("id,prompt\n" + "".join(f"{row.id},{row.text}\n" for row in ROWS))
    quality = {"filters": [{"kind": "depth_range", "min_span": 0.1}]}
    job = job_in(
        folder,
        input={"uri": str(folder / "a.csv")},
        quality=quality,
        output={"points": {"format": "ply"}, "shard_rows": 8},
    )
    assert job.complete().counts == {"kept": 3, "rejected": 1, "quarantined": 1}
    return folder


@pytest.fixture
def output(dataset: Path, tmp_path: Path) -> Path:
    """A copy of the dataset to plant faults in."""
    shutil.copytree(dataset / "out", tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def account(dataset: Path, output: Path) -> Account:
    """An account that has read the intact copy."""
    status = (dataset / "a.csv").stat()
    contents = {(str(dataset / "a.csv"), f"{status.st_size}-{status.st_mtime_ns}"): ROWS}
    account = Account(LocalObjects(output), contents)
    assert account.check() == []
    return account


def kinds(account: Account) -> set[str]:
    return {problem.kind for problem in account.check()}


def publish_forged(output: Path, forge: Callable[[Table, dict[str, Table]], None]) -> None:
    """Write a second version: samples and tables (outcome -> rows) of the first one, changed by `forge`."""
    version = json.loads((output / "_versions/000001/version.json").read_bytes())
    (segment,) = version["segments"]
    samples, shards = (pq.read_table(output / segment[name]) for name in ("path", "shards_path"))
    (shard,) = shards.to_pylist()
    paths = {file["outcome"]: file for file in shard["files"]}
    tables = {outcome: pq.read_table(output / file["path"]) for outcome, file in paths.items()}
    rows, parts = samples.to_pylist(), {outcome: table.to_pylist() for outcome, table in tables.items()}
    forge(rows, parts)
    for outcome, part in parts.items():
        file, schema = paths[outcome], tables[outcome].schema
        if part != tables[outcome].to_pylist():
            before, file["path"] = file["path"], file["path"].replace(".parquet", "-forged.parquet")
            file |= _write(output / file["path"], pa.Table.from_pylist(part, schema=schema)) | {"rows": len(part)}
            for row in rows:
                row["file"] = file["path"] if row["file"] == before else row["file"]
    shard["files"] = [file for file in shard["files"] if file["rows"]]
    for name, table, columns in (("", rows, samples), ("shards_", [shard], shards)):
        path = f"_versions/segments/000002-f0-{name or 'samples'}.parquet"
        written = _write(output / path, pa.Table.from_pylist(table, schema=columns.schema))
        segment |= {f"{name}path": path, f"{name}sha256": written["sha256"]}
    (output / "_versions/000002").mkdir()
    counts = {outcome: sum(row["outcome"] == outcome for row in rows) for outcome in version["counts"]}
    sizes = {f["outcome"]: {"files": 1, "rows": f["rows"], "bytes": f["bytes"]} for f in shard["files"]}
    version |= {"number": 2, "counts": counts, "sizes": sizes}
    (output / "_versions/000002/version.json").write_text(json.dumps(version))


def _write(path: Path, table: pa.Table) -> dict[str, Any]:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    path.write_bytes(sink.getvalue())
    return {"bytes": len(sink.getvalue()), "sha256": hashlib.sha256(sink.getvalue()).hexdigest()}


def lose(rows: Table, tables: dict[str, Table]) -> None:
    rows.remove(next(row for row in rows if row["outcome"] == "kept"))
    del tables["kept"][0]


def lose_from_table(rows: Table, tables: dict[str, Table]) -> None:
    del tables["kept"][0]


def double(rows: Table, tables: dict[str, Table]) -> None:
    rows.append(next(row for row in rows if row["outcome"] == "kept"))
    tables["kept"].append(tables["kept"][0])


def rename(rows: Table, tables: dict[str, Table]) -> None:
    next(row for row in rows if row["outcome"] == "kept")["id"] = tables["kept"][0]["id"] = "another/0"


def change_winner(rows: Table, tables: dict[str, Table]) -> None:
    loser = tables["kept"].pop(0)
    tables["rejected"].append({**loser, "reasons": ["keep_best: x"]})
    row, rejected = (next(r for r in rows if r["outcome"] == outcome) for outcome in ("kept", "rejected"))
    row.update(outcome="rejected", reasons=["keep_best: x"], file=rejected["file"])


def keep_a_reject(rows: Table, tables: dict[str, Table]) -> None:
    row, kept = (next(r for r in rows if r["outcome"] == outcome) for outcome in ("rejected", "kept"))
    tables["kept"].append({**tables["rejected"].pop(0), "pointcloud": tables["kept"][0]["pointcloud"]})
    row.update(outcome="kept", reasons=[], file=kept["file"])


def change_text(rows: Table, tables: dict[str, Table]) -> None:
    tables["kept"][0]["prompt"] = "another text"


def forget_cloud(rows: Table, tables: dict[str, Table]) -> None:
    tables["kept"][0]["pointcloud"] = "pointclouds/none.ply"


def nothing(rows: Table, tables: dict[str, Table]) -> None:
    pass


@pytest.mark.parametrize(
    ("forge", "kind"),
    [
        (nothing, set()),
        (lose, {"lost"}),
        (lose_from_table, {"ids"}),
        (double, {"doubled"}),
        (rename, {"ids"}),
        (change_winner, {"revised"}),
        (keep_a_reject, {"outcome", "revised"}),
        (change_text, {"text"}),
        (forget_cloud, {"cloud"}),
    ],
)
def test_a_forged_version_is_found(
    output: Path, account: Account, forge: Callable[[Table, dict[str, Table]], None], kind: set[str]
) -> None:
    publish_forged(output, forge)
    assert kinds(account) == kind


@pytest.mark.parametrize("folder", ["data", "rejected", "quarantine", "pointclouds", "_versions"])
@pytest.mark.parametrize("damage", ["missing", "short", "altered"])
def test_a_damaged_file_is_found(output: Path, account: Account, folder: str, damage: str) -> None:
    path = next(path for path in sorted((output / folder).rglob("*")) if path.suffix in (".parquet", ".ply"))
    data = path.read_bytes()
    path.unlink()
    if damage == "short":
        path.write_bytes(data[:-1])
    elif damage == "altered":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert kinds(account) == {"file"}


@pytest.mark.parametrize("name", ["_plan/*.parquet", "_commits/*.json", "_versions/000001/version.json"])
def test_a_changed_immutable_file_is_found(output: Path, account: Account, name: str) -> None:
    path = next(output.glob(name))
    path.write_bytes(path.read_bytes() + b" ")
    assert "changed" in kinds(account)
    path.unlink()
    assert "changed" in kinds(account)


def test_the_account_imports_nothing_of_the_engine() -> None:
    code = "import sys, tests.chaos.history_account; print([n for n in sys.modules if n.startswith('pipelines')])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_a_pruned_version_may_lose_its_files(output: Path, account: Account) -> None:
    publish_forged(output, nothing)
    assert kinds(account) == set()
    (output / "_versions/000001/pruned.json").write_text("{}")
    next((output / "_versions/segments").glob("000001-*.parquet")).unlink()
    assert kinds(account) == set()


def test_a_missing_row_of_a_listed_file_is_found(output: Path, account: Account) -> None:
    ((uri, etag),) = account.contents
    assert list(account.check_end({uri: etag}, strict=False)) == []
    account.contents = {**account.contents, (uri, "later"): ROWS}
    assert {problem.kind for problem in account.check_end({uri: "later"}, strict=False)} == {"listed"}
    (problem,) = account.check_end({uri: etag}, strict=True)
    assert "stays quarantined" in problem.text


def test_expected_samples_follow_from_the_plan() -> None:
    """The last planned version of each file with its later rounds, and the last retry of each sample."""

    def shard(plan: int, name: str, etag: str, stop: int = 2, round_: int = 0, retry: int = 0) -> PlannedRows:
        return PlannedRows(plan, name, round_, retry, (round_,), (Rows("/in/a", etag, "a", 0, stop),))

    first = [shard(1, "s1", "e1"), shard(2, "s2", "e1", round_=1)]
    assert expected_samples(first) == {("/in/a", "e1", n, i): {f"s{i + 1}"} for n in (0, 1) for i in (0, 1)}
    retried = [*first, shard(3, "s3", "e1", stop=1, retry=1), shard(4, "s4", "e1", stop=1, retry=2)]
    assert expected_samples(retried)["/in/a", "e1", 0, 0] == {"s4"}
    assert expected_samples(retried)["/in/a", "e1", 1, 0] == {"s1"}
    changed = [*retried, shard(5, "s5", "e2", stop=1)]
    assert expected_samples(changed) == {("/in/a", "e2", 0, 0): {"s5"}}
    emptied = [*changed, shard(6, "s6", "e3", stop=0)]
    assert expected_samples(emptied) == {}
    back = [*emptied, shard(7, "s1", "e1")]
    assert expected_samples(back)["/in/a", "e1", 1, 0] == {"s1"}
    assert len(expected_samples(back)) == 4, "the rounds of a restored input version count again"


def test_a_plan_file_of_the_engine_can_be_read(output: Path) -> None:
    (entry,) = read_plan((output / "_plan/000001.parquet").read_bytes(), 1)
    assert [(span.path, span.start, span.stop) for span in entry.spans] == [("a.csv", 0, len(ROWS))]
    assert entry.is_first
    assert len(list(entry.identities())) == len(ROWS)

"""Keys that were renamed: refused in a spec, translated in stored records, unchanged in fingerprints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.train import load_train_spec
from jointdit.errors import SpecError
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.versions import read_version
from pipelines.model.fingerprint import check_same, digest, fingerprint_of
from pipelines.model.identity import ModelIdentity
from pipelines.spec.job import JobSpec, load_spec
from pipelines.store.storage import Storage

IDENTITY = ModelIdentity(weights="0" * 64, bytes=1, height=128, width=128)
DIGEST = "dbc2e3507142f247"  # of an output that was started before the key was renamed
JOBS = Path(__file__).parents[3] / "jobs"


def depth(key: str) -> dict[str, Any]:
    model = {"name": "tiny", "dtype": "float32", key: 4}
    return {"task": "depth", "name": "out", "model": model, "input": {"uri": ["/in"]}, "output": {"uri": "/out"}}


def stored_output(folder: Path, spec: JobSpec) -> Ledger:
    """Write `_job.json` and a `version.json` as they were before the key was renamed."""
    ledger = Ledger(Storage(str(folder)))
    old = depth("rgb_refresh")
    job = {
        "format": 1,
        "spec": old,
        "fingerprint": fingerprint_of(spec, IDENTITY, recipe=1),
        "code": "1",
        "created": "now",
        "single_writer": False,
        "resolved": old,
        "sources": {},
        "token": "t",
    }
    ledger.storage.write_bytes("_job.json", json.dumps(job).encode())
    version = {
        "format": 2,
        "token": "t",
        "number": 1,
        "counts": {},
        "files": [],
        "superseded": 0,
        "reasons": {},
        "plans": [1],
        "outcomes_sha256": "",
        "created": "now",
        "code": "1",
        "spec": old,
    }
    ledger.storage.write_bytes("_versions/000001/version.json", json.dumps(version).encode())
    return ledger


def test_a_spec_with_the_old_key_is_refused_and_told_the_new_one() -> None:
    with pytest.raises(SpecError, match=r"^model.rgb_refresh was renamed: write condition_refresh instead of rgb_r"):
        load_spec(depth("rgb_refresh"))
    with pytest.raises(SpecError, match=r"^model.rgb_refresh was renamed: write condition_refresh instead"):
        load_spec(depth("condition_refresh"), ["model.rgb_refresh=2"])


@pytest.mark.parametrize(
    ("file", "section"), [("train_adapter", "training"), ("train_tiny", "base"), ("train_ablation", "joint")]
)
def test_a_training_spec_with_the_old_key_is_refused(file: str, section: str, tmp_path: Path) -> None:
    data = yaml.safe_load((JOBS / f"{file}.yaml").read_text())
    data[section]["optimiser"] = data[section].pop("optimizer")
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(SpecError, match=rf"^{section}.optimiser was renamed: write optimizer instead of optimiser\.$"):
        load_train_spec(tmp_path / "spec.yaml")


def test_records_with_the_old_key_are_translated(tmp_path: Path) -> None:
    ledger = stored_output(tmp_path, load_spec(depth("condition_refresh")))
    stored = (ledger.read_job().spec, ledger.read_job().resolved, read_version(ledger.storage, 1).recorded_spec)
    assert [load_spec(spec).model.condition_refresh for spec in stored] == [4, 4, 4]


def test_an_output_that_was_started_with_the_old_key_goes_on(tmp_path: Path) -> None:
    spec = load_spec(depth("condition_refresh"))
    fingerprint = fingerprint_of(spec, IDENTITY, recipe=1)
    assert fingerprint["model.rgb_refresh"] == 4
    assert digest(fingerprint) == DIGEST
    assert stored_output(tmp_path, spec).open_job(spec, fingerprint).fingerprint == fingerprint
    other = fingerprint_of(load_spec(depth("condition_refresh"), ["model.condition_refresh=2"]), IDENTITY, recipe=1)
    with pytest.raises(SpecError, match=r"differs in model.condition_refresh \(4 there, 2 here\)"):
        check_same(fingerprint, other, "out")

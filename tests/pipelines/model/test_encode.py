"""Task `encode`, and training on what it made: the same numbers as from pixels, within 16 bits."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from jointdit.errors import InputError, SpecError
from jointdit.pipeline import JointDiTPipeline
from jointdit.training.adapter import train_adapter
from jointdit.training.adapter_spec import AdapterTraining
from jointdit.training.encoding import encode_pairs
from jointdit.training.pairs import Pair
from pipelines.dataset import about
from pipelines.dataset.export import export_webdataset
from pipelines.dataset.publish import publish
from pipelines.dataset.validation.validate import validate
from pipelines.ledger.ledger import Ledger
from pipelines.model.fingerprint import fingerprint_of
from pipelines.model.identity import check_job_weights, identify_job
from pipelines.plan.propose import extend_plan, propose
from pipelines.run.rounds import pending_shards
from pipelines.spec.job import JobSpec, load_spec
from pipelines.stages.context import RunContext
from pipelines.stages.finish import finish_shard
from pipelines.stages.generate import GenerationWorker
from pipelines.stages.read import read_shard
from pipelines.stages.sinks.latents import ARRAYS
from pipelines.store.storage import Storage
from pipelines.training.encoded import LatentPairs
from pipelines.training.spec import DataSpec
from pipelines.training.tables import TablePairs
from tests.pipelines.training.test_training_tables import png, ramp, row, table


def run_here(spec: JobSpec) -> Any:
    """The chain of a run in this process, with the real worker; returns the published version."""
    identity, storage = identify_job(spec), Storage(spec.output.uri)
    check_job_weights(spec, identity.pins)
    fingerprint, ledger = fingerprint_of(spec, identity), Ledger(storage)
    context = RunContext(
        spec, storage, identity.height, identity.width, identity.weights, fingerprint, "test", identity.pins
    )
    proposal = propose(spec, fingerprint, ledger)
    ledger.open_job(spec, fingerprint)
    extend_plan(spec, fingerprint, ledger, proposal)
    worker = GenerationWorker(context, "cpu", 1)
    worker.set_up()
    for entry in pending_shards(ledger):
        rows, parts = read_shard(context, entry)
        finish_shard(context, entry, rows, *(worker.generate(part)[0] for part in parts))
    version, _ = publish(storage, ledger, spec)
    about.refresh(storage, ledger)
    return version


@pytest.fixture(scope="module")
def pairs_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [row(number) for number in range(5)]
    rows[2] = row(2, depth=png(ramp(20, 30)))  # of another size than its image
    return table(tmp_path_factory.mktemp("pairs") / "pairs.parquet", rows)


INPUT = {"columns": {"prompt": "text"}, "depth": {"kind": "metric", "scale": 0.001}}


def encode_spec(uri: Path, output: Path, **changes: Any) -> JobSpec:
    model = {"name": "tiny", "batch_size": 2}
    data: dict[str, Any] = {"task": "encode", "model": model, "buckets": [[32, 48], [32, 32]]}
    sections = {"input": {**INPUT, "uri": str(uri)}, "output": {"uri": str(output), "shard_rows": 3}}
    return load_spec({**data, **sections, "quality": {"max_quarantined_fraction": 1.0}, **changes})


@pytest.fixture(scope="module")
def encoded(pairs_table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("encoded") / "out"
    version = run_here(encode_spec(pairs_table, output))
    assert version.counts == {"kept": 4, "rejected": 0, "quarantined": 1}
    return output


def test_the_output_validates_and_tells_what_it_is(encoded: Path) -> None:
    assert validate(str(encoded)).problems == []
    card = (encoded / "README.md").read_text()
    assert "Latents and text embeddings" in card
    assert "text_states" in card
    assert not (encoded / "gallery").exists()
    (first, *_) = sorted((encoded / "data").iterdir())
    schema = pq.read_schema(io.BytesIO(first.read_bytes()))
    assert schema.field("latents_rgb").type == "binary"


def test_latents_leave_as_arrays_of_their_shape(encoded: Path, tmp_path: Path) -> None:
    export_webdataset(str(encoded), str(tmp_path / "tars"))
    rows = [each for path in sorted((encoded / "data").iterdir()) for each in pq.read_table(path).to_pylist()]
    with tarfile.open(tmp_path / "tars" / "000000.tar") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    keys = sorted({name.partition(".")[0] for name in members})
    told = {json.loads(members[f"{key}.json"])["id"]: key for key in keys}
    assert set(told) == {each["id"] for each in rows}
    for each in rows:
        for column in ARRAYS:
            array = np.load(io.BytesIO(members[f"{told[each['id']]}.{column}.npy"]))
            assert array.tobytes() == each[column]
            if column != "text_pooled":
                assert len(array) == each["text_tokens" if column == "text_states" else "tokens"]


def test_encoded_pairs_equal_those_encoded_from_pixels(pairs_table: Path, encoded: Path) -> None:
    latents = LatentPairs(DataSpec(kind="encoded", uri=(str(encoded),)).as_input(), "tiny")
    assert sum(latents.blocks()) == 4
    assert set(latents.sizes()) == {(32, 48)}
    pixels = TablePairs(DataSpec.model_validate({"kind": "table", "uri": str(pairs_table), **INPUT}).as_input())
    (pair,) = pixels.read([3], (32, 48))
    assert isinstance(pair, Pair)
    (wanted,) = encode_pairs(JointDiTPipeline.from_pretrained("tiny"), [pair])
    found = [each for each in latents.read(range(4), (32, 48)) if torch.equal(each.pooled, wanted.pooled.half())]
    assert len(found) == 1
    for name in ("rgb", "disparity", "states"):
        value, stored = getattr(wanted, name), getattr(found[0], name)
        assert stored.dtype == torch.float16
        torch.testing.assert_close(stored.float(), value, atol=2e-3, rtol=2e-3)


def test_a_pair_of_another_size_and_other_encoders_are_refused(encoded: Path, tmp_path: Path) -> None:
    source = DataSpec(kind="encoded", uri=(str(encoded),)).as_input()
    with pytest.raises(InputError, match="was encoded at height 32, width 48, which is not one of"):
        LatentPairs(source, "tiny").read([0], (32, 32))
    pipe = JointDiTPipeline.from_pretrained("tiny")
    next(pipe.vae.parameters()).data.add_(1)
    pipe.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="encoded by another VAE"):
        LatentPairs(source, str(tmp_path / "other"))


def test_a_table_of_pixels_is_no_encoded_data(pairs_table: Path) -> None:
    with pytest.raises(InputError, match="has no column 'id': give an output of task encode"):
        LatentPairs(DataSpec(kind="encoded", uri=(str(pairs_table),)).as_input(), "tiny")


WRONG = [
    ({"input": {"uri": "a.parquet"}}, r"input\.depth is missing"),
    ({"model": {"base": "a", "adapter": "b"}}, "model takes only name for task encode"),
    ({"quality": {"regenerate": 1}}, "quality.regenerate 0 for task encode"),
    ({"quality": {"filters": [{"kind": "depth_range", "min_span": 0.1}]}}, "task encode writes latents"),
    ({"buckets": [[30, 32]]}, "buckets.0.0"),
]


@pytest.mark.parametrize(("changes", "problem"), WRONG, ids=[str(number) for number in range(len(WRONG))])
def test_a_wrong_spec_is_one_sentence(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(SpecError, match=problem):
        encode_spec(tmp_path / "a.parquet", tmp_path / "out", **changes)


def test_what_is_not_finite_in_16_bits_is_set_aside(pairs_table: Path, tmp_path: Path) -> None:
    pipe = JointDiTPipeline.from_pretrained("tiny")
    pipe.vae.quant_conv.weight.data.mul_(1e6)
    pipe.save_pretrained(tmp_path / "loud")
    spec = encode_spec(pairs_table, tmp_path / "out", model={"name": str(tmp_path / "loud"), "dtype": "float32"})
    assert run_here(spec).counts == {"kept": 0, "rejected": 0, "quarantined": 5}
    (quarantine, *_) = (tmp_path / "out/quarantine").iterdir()
    errors = pq.read_table(quarantine)["error"].to_pylist()
    assert "its latents or embeddings are not finite in 16 bits." in errors


def test_training_on_latents_is_training_on_their_pixels(tmp_path: Path) -> None:
    whole = table(tmp_path / "whole.parquet", [row(number) for number in range(3)])
    run_here(encode_spec(whole, tmp_path / "out"))
    sources = {
        "pixels": TablePairs(DataSpec.model_validate({"kind": "table", "uri": str(whole), **INPUT}).as_input()),
        "latents": LatentPairs(DataSpec(kind="encoded", uri=(str(tmp_path / "out"),)).as_input(), "tiny"),
    }
    settings = {"steps": 2, "batch_size": 3, "buckets": [[32, 48]], "precision": "float32", "validation": {"every": 0}}
    training = AdapterTraining.model_validate(settings)  # all three pairs are in each step, whatever their order
    losses = {}
    for name, source in sources.items():
        pipe = JointDiTPipeline.from_pretrained("tiny")
        train_adapter(training, pipe, source, tmp_path / name, report=lambda line: None)
        lines = (tmp_path / name / "loss.jsonl").read_text().splitlines()
        losses[name] = [json.loads(line)["loss"] for line in lines]
    assert losses["latents"] == pytest.approx(losses["pixels"], rel=2e-3)
    assert losses["latents"] != losses["pixels"]  # 16 bits

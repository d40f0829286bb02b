"""The recipe of an output: a new one has the present recipe, an earlier one goes on with what it records."""

from __future__ import annotations

from pathlib import Path

import pytest

from jointdit.errors import SpecError
from pipelines.ledger.ledger import Ledger
from pipelines.model.encoders import load_encoders
from pipelines.model.fingerprint import RECIPE, digest, fingerprint_of, recipe_of
from pipelines.model.identity import identify
from pipelines.model.loading import load_pipeline
from pipelines.run.opening import open_job
from pipelines.spec.job import JobSpec, ModelSpec, load_spec
from pipelines.store.storage import Storage


def spec_in(folder: Path) -> JobSpec:
    (folder / "prompts.txt").write_text("a red cube\n")
    return load_spec(
        {"task": "joint", "input": {"uri": str(folder / "prompts.txt")}, "output": {"uri": str(folder / "out")}}
    )


def test_a_new_output_records_the_recipe(tmp_path: Path) -> None:
    spec = spec_in(tmp_path)
    opened = open_job(spec, Storage(spec.output.uri))
    assert opened.fingerprint["model.recipe"] == RECIPE == recipe_of(opened.fingerprint)
    opened.begin()
    assert open_job(spec, Storage(spec.output.uri)).fingerprint == opened.fingerprint


def test_an_output_without_a_recipe_goes_on_with_the_first_one(tmp_path: Path) -> None:
    spec = spec_in(tmp_path)
    first = fingerprint_of(spec, identify(spec.model), recipe=1)
    assert "model.recipe" not in first, "its shards keep their ids"
    Ledger(Storage(spec.output.uri)).open_job(spec, first)
    opened = open_job(spec, Storage(spec.output.uri))
    assert digest(opened.fingerprint) == digest(first)
    assert recipe_of(opened.context().fingerprint) == 1


def test_an_output_of_a_newer_version_is_refused_by_name(tmp_path: Path) -> None:
    spec = spec_in(tmp_path)
    newer = fingerprint_of(spec, identify(spec.model), recipe=RECIPE + 1)
    Ledger(Storage(spec.output.uri)).open_job(spec, newer)
    with pytest.raises(SpecError, match=rf"of a newer version of this package \(recipe {RECIPE + 1}, here {RECIPE}\)"):
        open_job(spec, Storage(spec.output.uri))


def test_the_vae_computes_as_the_recipe_says() -> None:
    for recipe in (1, 2):
        pipe = load_pipeline(ModelSpec(), "cpu", recipe)
        assert pipe.vae_allow_tf32 == load_encoders("tiny", pipe.dtype, "cpu", recipe).vae_allow_tf32 == (recipe == 1)

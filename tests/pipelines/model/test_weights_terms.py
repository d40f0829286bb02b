"""How weights are named in a spec, and what is told of their licence: by plan, and by the dataset's card."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.report import show_plan
from jointdit.errors import ModelError, SpecError
from pipelines.model.identity import identify
from pipelines.model.weights.local import checkpoint_folder
from pipelines.model.weights.selection import select_files
from pipelines.model.weights.terms import terms_of_card
from pipelines.run.preview import preview
from pipelines.spec.job import ModelSpec, load_spec
from pipelines.spec.weights_address import parse_address, spelled
from tests.local_job import LocalJob

NON_COMMERCIAL = {
    "license": "other",
    "license_name": "flux-1-dev-non-commercial-license",
    "license_link": "https://example.org/LICENSE.md",
}
FLUX_REPOSITORY = (
    *("README.md", "LICENSE.md", "flux1-dev.safetensors", "ae.safetensors", "model_index.json", "dev_grid.jpg"),
    *("transformer/config.json", "transformer/diffusion_pytorch_model.safetensors.index.json"),
    *(f"transformer/diffusion_pytorch_model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)),
    *("vae/config.json", "vae/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.bin"),
    *("text_encoder/config.json", "text_encoder/model.safetensors", "tokenizer/vocab.json", "tokenizer/merges.txt"),
    *("text_encoder_2/model.safetensors", "tokenizer_2/spiece.model", "scheduler/scheduler_config.json"),
)


def test_what_a_name_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "here").mkdir(parents=True)
    for value, kind, spelling in (
        ("tiny", "local", "tiny"),
        ("owner/here", "local", str(tmp_path / "owner" / "here")),  # what exists is a folder
        ("./weights", "local", str(tmp_path / "weights")),
        ("flux1-dev.safetensors", "local", str(tmp_path / "flux1-dev.safetensors")),
        ("owner/name", "hub", "owner/name"),
        ("owner/name@v1.0", "hub", "owner/name@v1.0"),
        ("hf://owner/name@v1.0", "hub", "owner/name@v1.0"),
        ("hf://owner/name/flux1.safetensors", "hub", "hf://owner/name/flux1.safetensors"),
        ("s3a://bucket/flux/", "store", "s3://bucket/flux"),
        ("gs://bucket/flux1.safetensors", "store", "gs://bucket/flux1.safetensors"),
    ):
        assert parse_address(value).kind == kind
        assert spelled(value) == spelling
        assert spelled(spelling) == spelling
    for value, sentence in (
        ("https://huggingface.co/owner/name", "https:// is not supported"),
        ("owner/name@", "has no revision after the @"),
        ("hf://owner/name/flux1.ckpt", "weights load from safetensors only"),
        ("two words", "is neither a path nor a hub name"),
        ("s3://", "names no folder or bucket"),
    ):
        with pytest.raises(ValueError, match=sentence):
            parse_address(value)


def test_which_files_of_a_repository_are_taken() -> None:
    chosen = select_files(FLUX_REPOSITORY, "pipeline", "model.base x")
    left = {"LICENSE.md", "flux1-dev.safetensors", "ae.safetensors", "dev_grid.jpg"}
    assert set(FLUX_REPOSITORY) - set(chosen) == left | {"vae/diffusion_pytorch_model.bin"}
    transformer = select_files(FLUX_REPOSITORY, "transformer", "model.base x")
    assert {name.split("/")[0] for name in transformer} == {"README.md", "transformer"}
    components = select_files(FLUX_REPOSITORY, "components", "model.components x")
    assert [name for name in components if name.startswith("transformer/")] == ["transformer/config.json"]
    with pytest.raises(ModelError, match=r"only vae/model.bin, and pickled files can run code"):
        select_files(["vae/model.bin", "model_index.json"], "pipeline", "model.base x")
    with pytest.raises(ModelError, match="leads out of its folder"):
        select_files(["../escape.safetensors"], "pipeline", "model.base x")


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (
            {"base": "s3://b/flux1.safetensors", "adapter": "o/a"},
            "base is a single file, which holds only the transformer",
        ),
        ({"name": "tiny", "components": "o/c"}, "components needs base"),
        ({"name": "/weights", "revision": "v1"}, "revision is for a name on the hub"),
        ({"name": "o/n@v1", "revision": "v2"}, "revision is for a name on the hub without one"),
    ],
    ids=["single file alone", "components of a whole", "revision of a folder", "two revisions"],
)
def test_names_that_do_not_go_together(model: dict[str, str], sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        load_spec({"task": "joint", "model": model, "input": {"uri": "/in"}, "output": {"uri": "/out"}})


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint of a folder, without a model card."""
    return Path(shutil.copytree(checkpoint_folder("tiny"), tmp_path / "checkpoint"))


def write_card(folder: Path, card: dict[str, str] | None) -> None:
    head = "".join(f"{key}: {value}\n" for key, value in (card or {}).items())
    (folder / "README.md").write_text(f"---\n{head}---\n# A model\n" if card else "# A model\n")


def test_plan_tells_the_licence(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompts.txt").write_text("a red cube\n")
    data = {"task": "joint", "input": {"uri": str(tmp_path / "prompts.txt")}, "output": {"uri": str(tmp_path / "out")}}
    for card, given, told in (
        (
            NON_COMMERCIAL,
            None,
            "flux-1-dev-non-commercial-license (by README.md, https://example.org/LICENSE.md)",
        ),
        ({"license": "apache-2.0"}, None, "apache-2.0 (by README.md)"),
        (None, None, "not known: give model.license"),
        (None, "cc-by-nc-4.0", "cc-by-nc-4.0 (by model.license)"),
    ):
        write_card(checkpoint, card)
        (pin,) = identify(ModelSpec(name=str(checkpoint), license=given)).pins
        assert str(pin.terms) == told
    show_plan(preview(load_spec({**data, "model": {"name": str(checkpoint), "license": "cc-by-nc-4.0"}})))
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("- its licence"))
    assert line.removeprefix("- its licence").strip() == "cc-by-nc-4.0 (by model.license)"


def test_the_card_has_the_weights_licence(make_job: Callable[..., LocalJob], checkpoint: Path) -> None:
    write_card(checkpoint, NON_COMMERCIAL)
    job = make_job(["a red cube", "a blue ball"])
    sources = identify(ModelSpec(name=str(checkpoint))).recorded()
    job.ledger.open_job(job.context.spec, job.context.fingerprint, sources)
    job.complete()
    assert job.ledger.recorded_sources() == sources
    readme = (Path(job.context.storage.uri) / "README.md").read_text()
    head = readme.split("---")[1]
    assert "license: other\n" in head
    assert "license_name: flux-1-dev-non-commercial-license\n" in head
    assert "license_link: https://example.org/LICENSE.md\n" in head
    assert "**At least one of these licences is non-commercial: read it" in readme
    assert "| `model.name` |" in readme


def test_gated_is_told_with_the_licence() -> None:
    terms = terms_of_card(NON_COMMERCIAL, "the hub", gated=True)
    assert str(terms) == (
        "flux-1-dev-non-commercial-license (by the hub, https://example.org/LICENSE.md); gated on the hub"
    )

"""The JSON beside an adapter: `inverse` is honoured in every task and in training, and text masks are refused."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jointdit.errors import ModelError, SpecError
from jointdit.loading.adapter_flags import depth_transform_of, flags_file
from jointdit.model.transformer import JointDiTTransformer2DModel, check_adapter
from jointdit.pipeline import JointDiTPipeline
from jointdit.pixels import disparity_to_vae
from jointdit.training.adapter import ADAPTER, World, assemble, draw, save_adapter
from jointdit.training.adapter_spec import AdapterTraining
from jointdit.training.encoding import encode_pairs
from jointdit.training.pairs import Pair

RAMP = np.tile(np.linspace(0, 1, 48, dtype=np.float32), (64, 1))
IMAGE = (RAMP * 255).astype(np.uint8)[..., None].repeat(3, axis=-1)


@pytest.fixture
def adapter(small_pipeline: JointDiTPipeline, tmp_path: Path) -> Path:
    path = tmp_path / "adapter.safetensors"
    small_pipeline.transformer.to_official(adapter=path)
    return path


@pytest.fixture
def inverse(small_pipeline: JointDiTPipeline, flux_folder: Path, adapter: Path) -> JointDiTPipeline:
    flags_file(adapter).write_text('{"depth_transform": "inverse", "is_txt_ids_training": true}')
    return JointDiTPipeline.from_pretrained(base=flux_folder, adapter=adapter, max_sequence_length=12)


def test_an_adapter_without_a_file_beside_it_is_read_as_it_is(adapter: Path) -> None:
    assert depth_transform_of(adapter) == "none"
    assert not flags_file(adapter).exists()


def test_inverse_inverts_depth_in_and_out(small_pipeline: JointDiTPipeline, inverse: JointDiTPipeline) -> None:
    """The authors' inference reads 1 - depth, and writes 1 - depth."""
    options: dict[str, Any] = {"seeds": [3], "num_inference_steps": 2}
    for given in ({"task": "depth", "image": IMAGE}, {"prompt": "a box", "height": 64, "width": 48}):
        plain, inverted = (pipe(**given, **options) for pipe in (small_pipeline, inverse))
        np.testing.assert_allclose(inverted.disparity, 1 - plain.disparity, atol=1e-5)
    plain = small_pipeline("a box", disparity=1 - RAMP, task="depth-to-image", **options)
    inverted = inverse("a box", disparity=RAMP, task="depth-to-image", **options)
    np.testing.assert_allclose(inverted.rgb.astype(int), plain.rgb.astype(int), atol=1)
    assert np.array_equal(inverted.disparity[0], RAMP)


def test_a_saved_pipeline_and_a_saved_adapter_keep_it(inverse: JointDiTPipeline, tmp_path: Path) -> None:
    inverse.save_pretrained(tmp_path / "saved")
    assert JointDiTPipeline.from_pretrained(tmp_path / "saved").depth_transform == "inverse"
    for number, save in enumerate((lambda p: inverse.transformer.to_official(adapter=p), None)):
        path = tmp_path / str(number) / ADAPTER
        path.parent.mkdir()
        if save is None:
            save_adapter(inverse.transformer, path, World())
        else:
            save(path)
        assert depth_transform_of(path) == "inverse"
    flags_file(path).write_text('{"depth_transform": "inverse"}')
    plain = JointDiTTransformer2DModel.from_config({**inverse.transformer.config, "depth_transform": "none"})
    plain.to_official(adapter=path)
    assert depth_transform_of(path) == "none", "the file of an earlier adapter is replaced"


def test_training_encodes_what_the_adapter_reads(small_pipeline: JointDiTPipeline, inverse: JointDiTPipeline) -> None:
    pair = Pair(IMAGE, RAMP, "a box")
    ours, other = (encode_pairs(pipe, [pair])[0] for pipe in (small_pipeline, inverse))
    torch.testing.assert_close(ours.rgb, other.rgb, atol=1e-5, rtol=0)
    expected = inverse.encode_pixels(disparity_to_vae(1 - RAMP[None]))[0]
    torch.testing.assert_close(other.disparity, expected, atol=1e-5, rtol=0)
    assert (ours.disparity - other.disparity).abs().mean() > 1e-3

    training, world = AdapterTraining(steps=1, batch_size=1), World()
    short = replace(ours, states=ours.states[:-1])
    noise, empty = draw(training, world, 0, 0), (ours.states, ours.pooled)
    with pytest.raises(SpecError, match="encoded, with 11 text tokens, and the model reads 12"):
        assemble(small_pipeline, [short], empty, noise, range(1), 0, 0, world)
    noise, empty = draw(training, world, 0, 0), (other.states, other.pooled)
    with pytest.raises(SpecError, match=r"data\.kind is encoded, and the adapter has depth_transform inverse"):
        assemble(inverse, [copy.copy(other)], empty, noise, range(1), 0, 0, world)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"is_attnmask_training": True}, r"adapter\.json: is_attnmask_training is true, and text masks are not supp"),
        ({"depth_transform": "log"}, r"adapter\.json: depth_transform is 'log': this package reads none and inverse"),
        ({"is_txt_ids_training": "no"}, r"adapter\.json: is_txt_ids_training is 'no': give true or false"),
        ([], r"adapter\.json: the JSON beside an adapter is not an object"),
    ],
)
def test_what_is_not_supported_is_refused(
    small_pipeline: JointDiTPipeline, flux_folder: Path, adapter: Path, flags: object, message: str
) -> None:
    flags_file(adapter).write_text(json.dumps(flags))
    with pytest.raises(ModelError, match=message):
        check_adapter(adapter, small_pipeline.transformer.config)
    with pytest.raises(ModelError, match=message):
        JointDiTPipeline.from_pretrained(base=flux_folder, adapter=adapter)


def test_a_config_with_another_transform_is_refused() -> None:
    with pytest.raises(ModelError, match="depth_transform is 'log': use one of none, inverse"):
        JointDiTTransformer2DModel(num_layers=1, num_single_layers=1, depth_transform="log")  # type: ignore[arg-type]

"""Estimators of depth: JointDiT at a benchmark's size with an ensemble, and real transformers models saved here."""

import io
import json

import numpy as np
import pytest
import torch

from jointdit.errors import ModelError
from jointdit.evaluation.ensemble import ensemble_maps
from jointdit.evaluation.estimators import JointDiTEstimator, working_size
from jointdit.evaluation.scenes import ENSEMBLE_STRIDE, depth_estimator, held_out_scenes, score_depth
from jointdit.evaluation.transformers_depth import TransformersDepth
from jointdit.scenes import render_scene
from tests.small_models import save_depth_anything, save_dpt


@pytest.fixture(scope="module")
def relative(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "depth-anything-small"
    folder.mkdir()
    return folder, *save_depth_anything(folder, size=56)


def test_a_transformers_model_gives_what_its_own_class_gives_at_the_images_size(relative):
    folder, model, processor = relative
    rgb_image = render_scene(3, 96, 64).rgb
    estimator = TransformersDepth(str(folder))
    found = estimator.estimate(rgb_image, 756)

    assert (estimator.name, estimator.space) == ("depth-anything-small", "disparity")
    with torch.no_grad():
        raw = model(**processor(images=rgb_image, return_tensors="pt")).predicted_depth
    assert raw.shape == (1, 56, 84)
    by_hand = torch.nn.functional.interpolate(raw[:, None], (64, 96), mode="bicubic", align_corners=False)[0, 0]
    np.testing.assert_allclose(found, by_hand.numpy(), rtol=1e-4, atol=1e-5)
    assert found.std() > 0


def test_a_metric_model_is_aligned_in_depth_unless_told_otherwise(tmp_path):
    save_depth_anything(tmp_path, depth_estimation_type="metric", max_depth=20)
    assert TransformersDepth(str(tmp_path)).space == "depth"
    assert TransformersDepth(str(tmp_path), space="disparity").space == "disparity"


def test_dpt_is_a_model_of_disparity(tmp_path):
    save_dpt(tmp_path)
    estimator = TransformersDepth(str(tmp_path))
    assert estimator.space == "disparity"
    assert estimator.estimate(render_scene(3, 96, 64).rgb).shape == (64, 96)


def test_what_is_no_depth_model_is_one_sentence(tmp_path):
    with pytest.raises(ModelError, match="no depth model of transformers"):
        TransformersDepth(str(tmp_path / "nowhere"))
    save_depth_anything(tmp_path, safetensors=False)
    with pytest.raises(ModelError, match=r"only pytorch_model\.bin, and pickled files can run code"):
        TransformersDepth(str(tmp_path))


def test_an_adapter_and_code_beside_a_depth_model_are_refused(tmp_path, monkeypatch):
    folder, marker = tmp_path / "model", tmp_path / "it-ran"
    save_depth_anything(folder)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"adapter_config\.json makes the loader look for a PEFT adapter"):
        TransformersDepth(str(folder))
    (folder / "adapter_config.json").unlink()
    processor = {"image_processor_type": "P", "auto_map": {"AutoImageProcessor": "own.P"}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    (folder / "own.py").write_text(f"import os\nos.mkdir({str(marker)!r})\nclass P: pass\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))  # transformers would ask whether to run the code
    with pytest.raises(ModelError, match=r"no depth model of transformers.*custom code"):
        TransformersDepth(str(folder))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("shape", "long_side", "size"),
    [
        ((480, 640), None, (480, 640)),
        ((352, 1216), None, (352, 1216)),
        ((4032, 6048), 756, (512, 768)),
        ((768, 1024), 640, (480, 640)),
        ((20, 9), None, (32, 16)),
    ],
)
def test_the_working_size_holds_the_image_in_multiples_of_16(shape, long_side, size):
    assert working_size(shape, long_side) == size


def test_an_ensemble_of_jointdit_merges_its_seeds_and_single_estimates_differ(small_pipeline):
    small_pipeline.set_progress_bar_config(disable=True)
    rgb_image = render_scene(5, 48, 64).rgb
    single = [JointDiTEstimator(small_pipeline, steps=2, seed=seed).estimate(rgb_image) for seed in (0, 1, 2)]
    assert not np.allclose(single[0], single[1], atol=1e-2)
    estimator = JointDiTEstimator(small_pipeline, steps=2, ensemble=3, batch_size=2)
    merged, uncertainty = estimator.estimate_with_uncertainty(rgb_image)
    by_hand = ensemble_maps(np.stack(single))
    np.testing.assert_allclose(merged, by_hand.merged, atol=1e-4)
    np.testing.assert_allclose(uncertainty, by_hand.uncertainty, atol=1e-4)
    assert uncertainty.max() > 0.01


def test_a_image_of_any_size_comes_back_at_its_size_from_the_protocols_size(small_pipeline):
    seen = []
    rgb_image = render_scene(5, 70, 50).rgb

    def pipe(image, **options):
        seen.append(image.shape)
        return small_pipeline(image=image, **options)

    found = JointDiTEstimator(pipe, steps=1).estimate(rgb_image, 64)
    assert found.shape == (50, 70)
    assert seen == [(48, 64, 3)]
    JointDiTEstimator(pipe, steps=1, long_side=32).estimate(rgb_image, 64)
    assert seen[1] == (32, 32, 3)


def test_estimates_of_a_batch_are_merged_image_by_image(small_pipeline):
    scenes = held_out_scenes(3, 48, 64)
    rgb_images = [scene.rgb for scene in scenes]
    found = depth_estimator(small_pipeline, 1, batch_size=2, ensemble=2)(rgb_images)
    members = [depth_estimator(small_pipeline, 1, batch_size=2, seed=s)(rgb_images) for s in (0, ENSEMBLE_STRIDE)]
    by_hand = ensemble_maps(np.stack([members[0][2], members[1][2]])).merged
    np.testing.assert_allclose(found[2], by_hand, atol=1e-4)


def test_scenes_are_scored_in_the_space_of_the_estimator():
    scenes = held_out_scenes(2, 48, 48)
    depths = [scene.depth * 3 + 1 for scene in scenes]
    assert score_depth(depths, scenes, "depth").abs_rel < 1e-5
    assert score_depth(depths, scenes, "disparity").abs_rel > 0.1

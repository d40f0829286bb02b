"""Scores that cost a model: measured on request, by the worker, without changing the sample."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from jobs.report import show_plan
from jointdit.errors import ModelError, SpecError
from jointdit.evaluation.features import load_clip
from jointdit.evaluation.generation import clip_score
from jointdit.evaluation.transformers_depth import TransformersDepth
from jointdit.scenes import render_scene
from pipelines.model.loading import load_pipeline
from pipelines.quality import load_scores
from pipelines.quality.ensemble_spread import EnsembleSpread
from pipelines.quality.model_scored import ScoredBatch, estimate_seed
from pipelines.quality.self_consistency import SelfConsistency
from pipelines.records import Content, Row, Sample, SampleResult
from pipelines.run.job import run_job
from pipelines.run.preview import preview
from pipelines.spec.job import ModelSpec, load_spec
from pipelines.stages.generate import GenerationWorker
from tests.local_job import LocalJob
from tests.small_models import save_clip, save_depth_anything, save_dpt
from tests.stand_in import StandInPipeline, StandInWorker

EVERYTHING = ["self_consistency", {"kind": "ensemble_spread", "estimates": 2, "steps": 1}]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture(scope="module")
def critic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dpt(tmp_path_factory.mktemp("models") / "dpt")


def sample(seed: int, prompt: str | None = "a red cube") -> Sample:
    return Sample(f"row{seed}/0", Row(f"row{seed}", "/in", seed, prompt=prompt), 0, 0, seed)


def make_worker(make_job: Any, pipe: Any = None, **quality: Any) -> GenerationWorker:
    """The real worker, scorers included, with the stand-in for its weights or a pipeline that is there."""
    worker = StandInWorker(make_job(["a"], model={"batch_size": 2, "steps": 2}, quality=quality).context, "cpu", 1)
    worker.set_up()
    worker.pipe = pipe or worker.pipe
    return worker


def test_scores_leave_the_pixels_alone_and_do_not_depend_on_the_batch(make_job: Any) -> None:
    tiny = load_pipeline(ModelSpec(), "cpu")
    part = [sample(1), sample(2)]
    plain, _ = make_worker(make_job, tiny).generate(part)
    worker = make_worker(make_job, tiny, scores=EVERYTHING)
    scored, _ = worker.generate(part)
    for without, with_scores in zip(plain, scored, strict=True):
        np.testing.assert_array_equal(with_scores.rgb, without.rgb)
        np.testing.assert_array_equal(with_scores.disparity, without.disparity)
        assert without.scores == {}
        assert set(with_scores.scores) == {*SelfConsistency.scores, *EnsembleSpread.scores}
        assert 0 < with_scores.scores["ensemble_abs_rel_spread"] < 1
    (alone,), _ = worker.generate(part[1:])
    assert alone.scores == pytest.approx(scored[1].scores, rel=1e-3)
    assert alone.scores != pytest.approx(scored[0].scores, rel=1e-2)


def test_estimates_are_shared_and_their_noise_is_not_the_samples(make_job: Any) -> None:
    worker = make_worker(make_job, scores=["self_consistency", {"kind": "ensemble_spread", "estimates": 3}])
    asked = []

    def pipe(**arguments: Any) -> Any:
        asked.append((arguments["task"], arguments["num_inference_steps"], tuple(arguments["seeds"])))
        return StandInPipeline(32, 32)(**arguments)

    worker.pipe = pipe
    worker.generate([sample(1), sample(2)])
    estimates = [("depth", 4, (estimate_seed(1, number), estimate_seed(2, number))) for number in range(3)]
    assert asked == [("joint", 2, (1, 2)), *estimates]
    assert len({1, 2, *(seed for _, _, seeds in estimates for seed in seeds)}) == 8


def test_scores_are_measured_once_and_only_where_they_are_asked_for() -> None:
    assert load_scores((), (), "joint") == ()
    filters = [{"kind": "depth_range"}, {"kind": "self_consistency", "max_abs_rel": 0.2}]
    (found,) = load_scores(filters, [{"kind": "self_consistency", "steps": 2}], "joint")
    assert (found.kind, found.model_dump()["steps"]) == ("self_consistency", 2)


def test_a_filter_rejects_by_the_workers_scores_and_they_are_stored(make_job: Any) -> None:
    strict = {"kind": "self_consistency", "max_abs_rel": 0.001}
    job: LocalJob = make_job(["a", "b"], quality={"filters": [strict], "scores": [EVERYTHING[1]]})
    job.plan()
    (receipt,) = job.run()
    assert receipt.counts == {"kept": 0, "rejected": 2, "quarantined": 0}
    assert receipt.reasons == {"self_consistency": 2}
    (stored,) = job.ledger.read_commit(receipt.shard).objects
    rows = pq.read_table(io.BytesIO(job.context.storage.read_bytes(stored.path))).to_pylist()
    quality = rows[0]["quality"]
    assert quality["self_consistency_abs_rel"] > 0.001
    assert quality["ensemble_abs_rel_spread"] > 0
    assert quality["text_agreement"] is None
    assert quality["depth_span"] is not None
    expected = f"AbsRel of its depth to what the model sees in its image is {quality['self_consistency_abs_rel']:.3f}"
    assert rows[0]["reasons"] == [f"self_consistency: {expected}, more than 0.001"]


class Full(StandInPipeline):
    """A GPU on which images can be made two by two, and depth estimated from one at a time."""

    def __call__(self, *, task, seeds, **arguments):
        if task == "depth" and len(seeds) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().__call__(task=task, seeds=seeds, **arguments)


def test_a_score_that_does_not_fit_the_memory_halves_the_batch(make_job: Any) -> None:
    worker = make_worker(make_job, Full(32, 32), scores=["self_consistency"])
    results, summary = worker.generate([sample(seed) for seed in range(3)])
    assert summary.batch_size == 1
    assert [result.error for result in results] == [None] * 3
    assert all("self_consistency_abs_rel" in result.scores for result in results)


def test_a_sample_without_a_image_is_not_scored_and_its_neighbour_is(make_job: Any) -> None:
    worker = make_worker(make_job, scores=["self_consistency"])
    (bad, good), _ = worker.generate([sample(1, "NAN"), sample(2)])
    assert bad.error is not None
    assert bad.scores == {}
    assert "self_consistency_abs_rel" in good.scores


def batch(*prompts: str | None, content: Content | None = None) -> ScoredBatch:
    results = []
    for number, prompt in enumerate(prompts):
        scene = render_scene(number, 48, 48)
        disparity = ((1 / scene.depth - 1 / scene.depth.max()) / np.ptp(1 / scene.depth)).astype(np.float32)
        made = Sample(f"{number}/0", Row(str(number), "/in", number, prompt=prompt), 0, 0, number, content=content)
        results.append(SampleResult(made, rgb=scene.rgb, disparity=disparity))
    return ScoredBatch(results, None, 3.5)


def test_text_agreement_is_the_clip_score_of_one_pair(clip: Path) -> None:
    (scores,) = load_scores((), [{"kind": "text_agreement", "model": str(clip)}], "joint")
    texts = ("a red thing", None, "many words " * 10)
    found = scores.load("cpu")(given := batch(*texts))
    assert found[1] == {}
    assert max(found[0]["text_agreement"], found[2]["text_agreement"]) > 1
    for number in (0, 2):
        expected = clip_score(load_clip(str(clip)), [given.results[number].rgb], [texts[number]])
        assert max(found[number]["text_agreement"], 0) == pytest.approx(expected, rel=1e-4)


def test_a_critic_is_compared_in_disparity_without_padding(critic: Path, tmp_path: Path) -> None:
    from jointdit.evaluation.agreement import pair_agreement

    save_depth_anything(tmp_path, depth_estimation_type="metric", max_depth=20)
    inside = Content(8, 0, 32, 48)
    for folder, is_metric in ((critic, False), (tmp_path, True)):
        (scores,) = load_scores((), [{"kind": "depth_critic", "model": str(folder)}], "depth")
        (found,) = scores.load("cpu")(given := batch(None, content=inside))
        (result,) = given.results
        estimate = TransformersDepth(str(folder)).estimate(result.rgb[8:40])
        expected = pair_agreement(1 / np.maximum(estimate, 0.1) if is_metric else estimate, result.disparity[8:40])
        assert tuple(found[name] for name in scores.scores) == pytest.approx(expected)
        assert 0 < found["critic_abs_rel"] < 5


def test_a_metric_critic_that_is_right_agrees_whatever_the_range_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_depth_anything(tmp_path, depth_estimation_type="metric", max_depth=20)
    (scores,) = load_scores((), [{"kind": "depth_critic", "model": str(tmp_path)}], "depth")
    score = scores.load("cpu")
    monkeypatch.setattr(TransformersDepth, "estimate", lambda critic, image: render_scene(0, 48, 48).depth)
    (found,) = score(batch(None))
    assert found["critic_abs_rel"] == pytest.approx(0, abs=1e-4)
    assert found["critic_correlation"] == pytest.approx(1, abs=1e-4)


def test_what_a_model_cannot_score_has_no_score(critic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (scores,) = load_scores((), [{"kind": "depth_critic", "model": str(critic)}], "depth")
    score = scores.load("cpu")
    flat = batch(None)
    flat.results[0].disparity[:] = 0.5
    assert score(flat) == [{}]
    (spread,) = load_scores((), [{"kind": "ensemble_spread"}], "depth")
    nan = SimpleNamespace(disparity=np.full((1, 48, 48), np.nan, np.float32))
    unsure = ScoredBatch(batch(None).results, lambda **arguments: nan, 3.5)
    assert spread.load("cpu")(unsure) == [{}]


def test_padding_is_left_out_of_scores(tmp_path: Path, make_job: Any) -> None:
    from PIL import Image

    from pipelines.stages.read import read_shard

    (tmp_path / "pictures").mkdir()
    Image.fromarray(render_scene(0, 60, 30).rgb).save(tmp_path / "pictures" / "a.png")
    job = make_job(task="depth", input={"uri": str(tmp_path / "pictures")}, quality={"scores": [EVERYTHING[1]]})
    job.plan()
    (entry,) = job.ledger.planned()
    _, ((made,),) = read_shard(job.context, entry)
    assert made.rgb.shape == (16, 32, 3)
    assert made.content == Content(0, 0, 16, 32)
    (receipt,) = job.run()
    assert receipt.counts["kept"] == 1


REFUSED = [
    ("joint", {"scores": 3}, "quality.scores must be a list of kinds such as self_consistency, found 3."),
    ("joint", {"scores": ["self_consistenc"]}, "quality.scores.0.kind is 'self_consistenc', which is no filter: did"),
    ("joint", {"scores": ["depth_range"]}, "quality.scores.0: depth_range is measured for every sample: remove it"),
    ("depth", {"scores": ["self_consistency"]}, "all that task depth makes: use ensemble_spread."),
    ("depth", {"filters": [{"kind": "self_consistency"}]}, "quality.filters.0: self_consistency compares depth with"),
    ("depth", {"scores": ["text_agreement"]}, "quality.scores.0: text_agreement needs a text, and task depth has none"),
    ("prepare", {"scores": ["ensemble_spread"]}, "needs the joint model, which task prepare does not load"),
    ("joint", {"scores": [{"kind": "self_consistency", "min_delta1": 0.9}]}, "quality.scores.0.min_delta1 is a thresh"),
    (
        "joint",
        {"scores": [{"kind": "self_consistency", "steps": 2}], "filters": [{"kind": "self_consistency", "steps": 3}]},
        "quality.scores.0.steps is 2 and was 3 for self_consistency before: a score is measured in one way",
    ),
]


@pytest.mark.parametrize(("task", "quality", "sentence"), REFUSED)
def test_scores_that_make_no_sense_are_one_sentence(task: str, quality: dict[str, Any], sentence: str) -> None:
    spec = {"task": task, "input": {"uri": "in.txt"}, "output": {"uri": "out"}, "quality": quality}
    extra = {"teachers": "teacher"} if task == "prepare" else {}
    with pytest.raises(SpecError) as caught:
        load_spec({**spec, **extra})
    assert sentence in str(caught.value)


def test_models_that_scores_cannot_use_are_told_before_anything_is_written(
    clip: Path, critic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.txt").write_text("a red cube\n")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    save_depth_anything(pickled, safetensors=False)

    def spec(kind: str, **settings: Any) -> Any:
        quality = {"scores": [{"kind": kind, **settings}]}
        data = {"task": "joint", "input": {"uri": str(tmp_path / "in.txt")}, "output": {"uri": str(tmp_path / "out")}}
        return load_spec({**data, "quality": quality})

    for wrong, error, parts in (
        (spec("text_agreement"), SpecError, "text_agreement needs a CLIP model of transformers: give model, a folder"),
        (
            spec("text_agreement", model=str(tmp_path / "none")),
            ModelError,
            "text_agreement: .*none: there is no such folder",
        ),
        (spec("text_agreement", model=str(critic)), ModelError, "no CLIP model .* its config.json says dpt"),
        (spec("depth_critic", model=str(clip)), ModelError, "depth_critic: .*no depth model .* says clip: give one of"),
        (spec("depth_critic", model=str(pickled)), ModelError, r"only pytorch_model\.bin, and pickled files can run"),
    ):
        for command in (preview, run_job):
            with pytest.raises(error, match=parts):
                command(wrong)
    assert not (tmp_path / "out").exists()
    plan = preview(spec("depth_critic", model=str(critic)))
    assert plan.scores == (("depth_critic", f"one pass of {critic}"),)
    show_plan(plan)
    shown = " ".join(capsys.readouterr().out.split())
    assert f"score depth_critic: one pass of {critic} per sample" in shown


def test_a_model_that_no_worker_can_load_is_a_permanent_error(make_job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for kind, what in (("text_agreement", "no CLIP model"), ("depth_critic", "no depth model")):
        with pytest.raises(ModelError, match=f"nobody/nothing: {what} of transformers"):
            make_worker(make_job, scores=[{"kind": kind, "model": "nobody/nothing", "revision": "1234"}])

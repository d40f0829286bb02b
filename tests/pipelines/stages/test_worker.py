from __future__ import annotations

import numpy as np
import pytest
import torch

from jointdit.errors import ModelError
from jointdit.loading import cpu_dtype
from pipelines.records import Row, Sample
from pipelines.stages.generate import DeviceFault, GenerationWorker
from tests.stand_in import StandInPipeline, StandInWorker


def sample(prompt: str, number: int = 0) -> Sample:
    row = Row(f"row{number}", "/in", number, prompt=prompt)
    return Sample(f"row{number}/0", row, 0, 0, seed=number)


@pytest.fixture
def worker(make_job) -> StandInWorker:
    worker = StandInWorker(make_job(["a"], model={"batch_size": 4}).context, "cpu", 1)
    worker.set_up()
    return worker


def test_a_part_gives_one_result_per_sample_in_order(worker: StandInWorker) -> None:
    part = [sample(f"prompt {n}", n) for n in range(7)]
    results, summary = worker.generate(part)
    assert [result.sample.id for result in results] == [each.id for each in part]
    assert all(result.error is None for result in results)
    assert {result.rgb.shape for result in results} == {(32, 32, 3)}
    assert (summary.samples, summary.batch_size) == (7, 4)
    assert worker.generate([])[0] == []


def test_a_sample_that_fails_fails_alone(worker: StandInWorker) -> None:
    alone = worker.generate([sample("fine", 1)])[0][0]
    results, _ = worker.generate([sample("fine", 0), sample("fine", 1), sample("RAISE", 2), sample("fine", 3)])
    assert [result.error is None for result in results] == [True, True, False, True]
    assert results[2].error == "the model failed on it, RuntimeError: the stand-in was asked to raise"
    assert "in misbehave" in results[2].traceback
    np.testing.assert_array_equal(results[1].rgb, alone.rgb)


def test_an_output_that_is_not_finite_is_quarantined_and_its_batch_is_not(worker: StandInWorker) -> None:
    results, _ = worker.generate([sample("fine", 0), sample("NAN", 1), sample("fine", 2)])
    assert [result.error for result in results] == [None, "the model's output is not finite.", None]


class SmallMemory(StandInPipeline):
    """A model that fits two samples at once, as a GPU does: more is torch's own error."""

    def __call__(self, *, seeds, **arguments):
        if len(seeds) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().__call__(seeds=seeds, **arguments)


def test_out_of_memory_halves_the_batch_and_remembers(worker: StandInWorker) -> None:
    worker.pipe = SmallMemory(32, 32)
    results, summary = worker.generate([sample("fine", n) for n in range(7)])
    assert [result.sample.id for result in results] == [f"row{n}/0" for n in range(7)]
    assert all(result.error is None for result in results)
    assert summary.batch_size == worker.batch_size.current == 2


class ShortOfMemory(StandInPipeline):
    """A model on a GPU whose memory another process uses during the first calls."""

    calls = 0
    sizes: list[int]

    def __call__(self, *, seeds, **arguments):
        self.calls += 1
        self.sizes.append(len(seeds))
        if len(seeds) > 2 and self.calls < 10:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().__call__(seeds=seeds, **arguments)


def test_a_halved_batch_is_raised_again(worker: StandInWorker) -> None:
    """A worker that met one fault of memory stayed at the half for as long as it lived."""
    worker.pipe = ShortOfMemory(32, 32)
    worker.pipe.sizes = []
    summaries = [worker.generate([sample("fine", n) for n in range(4)])[1] for _ in range(20)]
    assert [summary.batch_size for summary in summaries] == [2] * 15 + [4] * 5
    assert worker.pipe.sizes == [4] + [2] * 32 + [4] * 4


class NoMemory(StandInPipeline):
    """Nothing fits."""

    def __call__(self, **arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_sample_that_does_not_fit_alone_is_quarantined(worker: StandInWorker) -> None:
    worker.pipe = NoMemory(32, 32)
    results, _ = worker.generate([sample("fine", n) for n in range(3)])
    assert [result.error for result in results] == ["one sample alone does not fit into the worker's memory."] * 3


class Fragmented(StandInPipeline):
    """What a failed batch leaves behind makes the next one fail too, once."""

    calls = 0

    def __call__(self, **arguments):
        self.calls += 1
        if self.calls <= 3:  # four samples, two, one
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().__call__(**arguments)


def test_a_sample_that_fits_after_memory_is_released_is_generated(worker: StandInWorker) -> None:
    worker.pipe = Fragmented(32, 32)
    results, summary = worker.generate([sample("fine", n) for n in range(4)])
    assert [result.error for result in results] == [None] * 4
    assert summary.batch_size == 1


def test_memory_of_the_machine_is_halved_like_that_of_a_gpu(worker: StandInWorker) -> None:
    class SmallMachine(StandInPipeline):
        def __call__(self, *, seeds, **arguments):
            if len(seeds) > 2:
                bytearray(1 << 62)
            return super().__call__(seeds=seeds, **arguments)

    worker.pipe = SmallMachine(32, 32)
    results, summary = worker.generate([sample("fine", n) for n in range(4)])
    assert [result.error for result in results] == [None] * 4
    assert summary.batch_size == 2


class BrokenDevice(StandInPipeline):
    """A GPU that fell off the bus."""

    def __call__(self, **arguments):
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")


def test_a_broken_gpu_is_a_fault_of_the_worker(worker: StandInWorker) -> None:
    worker.pipe = BrokenDevice(32, 32)
    with pytest.raises(DeviceFault, match=r"the GPU of .* failed"):
        worker.generate([sample("fine")])


def test_a_model_that_is_not_there_is_a_permanent_error(make_job, tmp_path) -> None:
    job = make_job(["a"], model={"name": str(tmp_path / "nothing")})
    with pytest.raises(ModelError):
        GenerationWorker(job.context, "cpu", 1).set_up()


def test_a_cpu_without_units_for_the_type_computes_in_float32_and_says_so(make_job, monkeypatch) -> None:
    monkeypatch.setattr(cpu_dtype, "_has_units", lambda dtype: False)
    job = make_job(["a"], model={"name": "tiny", "dtype": "bfloat16", "steps": 1})
    worker = GenerationWorker(job.context, "cpu", 1)
    worker.set_up()
    assert {worker.pipe.transformer.dtype, worker.pipe.text_encoder_2.dtype} == {torch.float32}
    results, summary = worker.generate([sample("a red sphere")])
    assert (results[0].error, summary.dtype) == (None, "float32")
    assert job.context.spec.model.dtype == "bfloat16", "what decides pixels stays as the spec says"


def test_destroy_releases_the_model(worker: StandInWorker) -> None:
    worker.destroy()
    assert worker.pipe is None

"""The worker actor: one model on one GPU, or on some CPU cores.

Its life: set up (load the model), generate many times, destroy. `destroy` is needed because the GPU context of a killed
process can stay for a while, and the next worker on that GPU then runs out of memory.
"""

from __future__ import annotations

import gc
import socket
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jointdit.errors import PermanentError
from pipelines.model.encoders import encode_samples, load_encoders
from pipelines.model.fingerprint import recipe_of
from pipelines.model.identity import computed_on
from pipelines.model.loading import load_pipeline, local_spec
from pipelines.model.memory import check_device
from pipelines.model.metric_depth import load_calibrator
from pipelines.model.teachers import Preparer
from pipelines.quality import ScoredBatch, Scorer, load_scores
from pipelines.records import Sample, SampleResult
from pipelines.spec.job import EncodeSpec, PrepareSpec
from pipelines.stages.batch_size import BatchSize
from pipelines.stages.context import RunContext
from pipelines.stages.read import size_of
from pipelines.store.errors import TransientError
from pipelines.store.safe_text import mask_secrets


@dataclass(frozen=True)
class PartSummary:
    """The small part of a result of `generate`, for the driver, which never fetches pixels."""

    samples: int
    seconds: float
    batch_size: int  # that fits the worker's memory
    steps: Mapping[str, float] = field(default_factory=dict)  # seconds by step of the calls, if they are timed
    dtype: str = ""  # that the model computed in
    bytes: int = 0  # of the arrays of the results


class DeviceFault(TransientError):
    """The GPU failed. Every later call would fail too, so the worker is replaced."""


class OutOfMemory(Exception):
    """The batch does not fit into memory."""


class GenerationWorker:
    """Generates samples with a model that it loads once."""

    def __init__(self, context: RunContext, device: str, threads: int) -> None:
        self.context = context
        self.device = device
        self.threads = threads  # on CPU: the node's cores divided by its workers
        self.batch_size = BatchSize(context.spec.model.batch_size)
        self.dtype: str = context.spec.model.dtype  # that the model computes in
        self.pipe: Any = None  # JointDiTPipeline, or the model that the task runs instead
        self.scorers: list[Scorer] = []  # of the requested scores that need a model
        self.stopwatch: Any = None  # if the run is profiled

    def node(self) -> str:
        """Ray's id of this node."""
        import ray

        node: str = ray.get_runtime_context().get_node_id()
        return node

    def set_up(self) -> str:
        """Load the model and those that scores need. Returns the name of the host. Raises ModelError."""
        self.pipe = self.load()
        spec = self.context.spec
        scores = load_scores(spec.quality.filters, spec.quality.scores, spec.task)
        self.scorers = [score.load(self.device) for score in scores]
        if spec.output.points.calibrate is not None:
            self.scorers.append(load_calibrator(spec.output.points.calibrate, self.device))
        if self.context.profile:
            from jointdit.profiling.stopwatch import Stopwatch

            self.stopwatch = Stopwatch(self.device)
            if hasattr(self.pipe, "stopwatch"):  # teachers and encoders have no steps
                self.pipe.stopwatch = self.stopwatch
        return socket.gethostname()

    def load(self) -> Any:
        """The pipeline, ready on the device."""
        import torch

        torch.set_num_threads(self.threads)
        spec = local_spec(self.context.spec, self.context.pins)
        spec = spec.model_copy(update={"model": computed_on(self.device, spec.model)})
        self.dtype = spec.model.dtype
        recipe = recipe_of(self.context.fingerprint)
        if isinstance(spec, PrepareSpec):
            return Preparer(spec, self.device)
        if isinstance(spec, EncodeSpec):
            return load_encoders(spec.model.name or "", getattr(torch, spec.model.dtype), self.device, recipe)
        check_device(spec, self.context.height, self.context.width, self.device)
        return load_pipeline(spec.model, self.device, recipe)

    def generate(self, part: Sequence[Sample]) -> tuple[list[SampleResult], PartSummary]:
        """Generate a part. Returns one result per sample, in order; a sample that fails does not affect the others.

        Raises:
            DeviceFault: the GPU failed; the worker must be replaced.
        """
        started = time.monotonic()
        results: list[SampleResult] = []
        for _, same_size in groupby(part, key=size_of):
            batch, tried_alone = list(same_size), False
            while batch:
                size = min(len(batch), self.batch_size.current)
                try:
                    results += self._batch(batch[:size])
                    self.batch_size.succeeded(size)
                except OutOfMemory:
                    _release_memory()
                    if size > 1:
                        self.batch_size.failed(size)
                        continue
                    if not tried_alone:
                        tried_alone = True  # memory of a larger batch may not have been free
                        continue
                    results.append(_failed(batch[0], "one sample alone does not fit into the worker's memory."))
                batch, tried_alone = batch[size:], False
        steps = self.stopwatch.take() if self.stopwatch is not None else {}
        seconds, held = time.monotonic() - started, sum(map(_array_bytes, results))
        return results, PartSummary(len(part), seconds, self.batch_size.current, steps, self.dtype, held)

    def destroy(self) -> None:
        """Release the model and the GPU."""
        self.pipe, self.scorers = None, []
        _release_memory()

    def _batch(self, batch: list[Sample]) -> list[SampleResult]:
        try:
            results = self._run(batch)
            with self.stopwatch.step("score") if self.stopwatch is not None else nullcontext():
                self._score(results)
            return results
        except PermanentError:
            raise
        except Exception as error:
            import torch

            if isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error):
                raise OutOfMemory from error
            if isinstance(error, torch.AcceleratorError):
                raise DeviceFault(f"the GPU of {socket.gethostname()} failed: {error}") from error
            if len(batch) == 1:
                sentence = f"the model failed on it, {type(error).__name__}: {error}"
                return [_failed(batch[0], sentence, traceback.format_exc())]
        return [result for sample in batch for result in self._batch([sample])]

    def _run(self, batch: list[Sample]) -> list[SampleResult]:
        spec = self.context.spec
        assert self.pipe is not None, "set_up comes first"
        if isinstance(spec, PrepareSpec):
            return [
                SampleResult(_light(sample), rgb=sample.rgb, disparity=disparity, caption=caption)
                if np.isfinite(disparity).all() and disparity.max() > disparity.min()
                else _failed(sample, "the teacher's disparity is constant or not finite.")
                for sample, (disparity, caption) in zip(batch, self.pipe(batch), strict=True)
            ]
        if isinstance(spec, EncodeSpec):
            return [
                SampleResult(_light(sample), encoded=encoded)
                if encoded is not None
                else _failed(sample, "its latents or embeddings are not finite in 16 bits.")
                for sample, encoded in zip(batch, encode_samples(self.pipe, batch, self.context.weights), strict=True)
            ]
        arguments: dict[str, Any] = {
            "task": spec.task,
            "seeds": [sample.seed for sample in batch],
            "num_inference_steps": spec.model.steps,
            "guidance_scale": spec.model.guidance,
            "condition_refresh": spec.model.condition_refresh,
        }
        if spec.task != "depth":
            arguments["prompt"] = [sample.row.prompt for sample in batch]
        if spec.task == "joint":
            arguments |= {"height": self.context.height, "width": self.context.width}
        elif spec.task == "depth":
            arguments["image"] = [sample.rgb for sample in batch]
        else:
            arguments["disparity"] = [sample.disparity for sample in batch]
        output = self.pipe(**arguments)
        return [
            SampleResult(_light(sample), rgb=rgb, disparity=disparity)
            if finite and np.isfinite(disparity).all()
            else _failed(sample, "the model's output is not finite.")
            for sample, rgb, disparity, finite in zip(batch, output.rgb, output.disparity, output.finite, strict=True)
        ]

    def _score(self, results: list[SampleResult]) -> None:
        """Add the scores that need a model to samples of one size; pixels do not change."""
        valid = [result for result in results if result.error is None]
        if not self.scorers or not valid:
            return
        spec = self.context.spec
        # Depth is estimated as in task depth; the guidance of a joint job would change the estimate.
        batch = ScoredBatch(valid, self.pipe, spec.model.guidance if spec.task == "depth" else None)
        for scorer in self.scorers:
            for result, scores in zip(valid, scorer(batch), strict=True):
                result.scores |= scores


def _light(sample: Sample) -> Sample:
    """The sample without the arrays that went into the model."""
    return replace(sample, rgb=None, disparity=None)


def _failed(sample: Sample, error: str, trace: str = "") -> SampleResult:
    sentence = mask_secrets(" ".join(error.split()))
    return SampleResult(_light(sample), error=sentence, traceback=mask_secrets(trace))


def _array_bytes(result: SampleResult) -> int:
    arrays: list[NDArray[Any] | None] = [result.rgb, result.disparity]
    if result.encoded is not None:
        arrays += [result.encoded.rgb, result.encoded.disparity, result.encoded.states, result.encoded.pooled]
    return sum(array.nbytes for array in arrays if array is not None)


def _release_memory() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()

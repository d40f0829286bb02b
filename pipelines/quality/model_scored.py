"""Base of filters whose scores a worker measures with a model.

A worker measures them right after generation. A filter of their kind in `quality.filters` asks for them, or
`quality.scores`, which rejects nothing. The worker measures them because it has the device; a model beside the job's
own is loaded once per worker. Scores see a sample at the model's size, without the padding that brought it there, and
do not change it.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipelines.quality.filter import Filter
from pipelines.records import SampleResult

JOINT_TASKS = ("joint", "depth", "depth-to-image")  # tasks whose workers load the joint model


class ScoredBatch:
    """Generated samples of one size, with depth estimated from their images again on request.

    `pipe` is called like JointDiTPipeline, with this guidance (None: the checkpoint's own for depth). Estimates are
    cached, so that scores which need the same estimate share it.
    """

    def __init__(self, results: Sequence[SampleResult], pipe: Any, guidance: float | None) -> None:
        self.results = tuple(results)
        self._pipe = pipe
        self._guidance = guidance
        self._estimates: dict[tuple[int, int], list[NDArray[np.float32]]] = {}

    def images(self) -> list[NDArray[np.uint8]]:
        """Return the images (h, w, 3), without padding."""
        return [result.without_padding(_present(result.rgb)) for result in self.results]

    def disparities(self) -> list[NDArray[np.float32]]:
        """Return the relative disparities (h, w), without padding."""
        return [result.without_padding(_present(result.disparity)) for result in self.results]

    def estimate(self, number: int, steps: int) -> list[NDArray[np.float32]]:
        """Return the `number`-th estimate of the images' disparity (h, w), without padding; NaN if the model fails.

        Its noise depends on the sample's seed and `number` and has its own stream: it differs from the noise that made
        the sample, and it is the same in every batch.
        """
        if (number, steps) not in self._estimates:
            out = self._pipe(
                task="depth",
                image=[result.rgb for result in self.results],
                seeds=[estimate_seed(result.sample.seed, number) for result in self.results],
                num_inference_steps=steps,
                guidance_scale=self._guidance,
            )
            pairs = zip(self.results, out.disparity, strict=True)
            self._estimates[number, steps] = [result.without_padding(disparity) for result, disparity in pairs]
        return self._estimates[number, steps]


Scorer = Callable[[ScoredBatch], list[dict[str, float]]]
"""Returns the scores of each sample by name. A score that cannot be measured is left out."""


class ModelScored(Filter):
    """A filter whose scores a worker measures."""

    measured_with: ClassVar[tuple[str, ...]] = ()  # fields that define the measurement; the others are thresholds

    @staticmethod
    def measure(result: SampleResult) -> dict[str, float]:
        """Return nothing, because pixels alone are not enough."""
        return {}

    @classmethod
    def refusal(cls, task: str) -> str | None:
        """Return why these scores make no sense for a task, as the end of a sentence; None if they do."""
        return None

    def check(self) -> None:
        """Check settings and files before a run. Raises SpecError, ModelError."""

    def weights(self) -> str | None:
        """Return the folder or hub name of the model that is loaded beside the job's own, or None."""
        return None

    @abstractmethod
    def cost(self) -> str:
        """Return what measuring a sample costs, in a few words."""

    @abstractmethod
    def load(self, device: str) -> Scorer:
        """Return a scorer that is ready on a device ("cpu", "cuda"). Raises ModelError."""


def estimate_seed(seed: int, number: int) -> int:
    """Return a 63-bit seed for a sample's `number`-th estimate, which depends only on the sample's seed."""
    digest = hashlib.sha256(f"{seed}\0estimate\0{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _present(array: NDArray[Any] | None) -> NDArray[Any]:
    assert array is not None, "only samples with pixels are scored"
    return array

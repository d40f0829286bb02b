"""Scores that cost a model: what a worker measures while the image is there, where the spec asks for it.

They are asked for by a filter of their kind in `quality.filters`, or by `quality.scores`, which rejects nothing. The
worker measures them because it has the device; what they need beside the job's own model is loaded once a worker.
They see a sample at the model's size, without the padding that brought it there, and change nothing of it.
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

JOINT_TASKS = ("joint", "depth", "depth-to-image")  # whose workers hold the joint model


class ScoredBatch:
    """Generated samples of one size, with depth that is estimated from their images again where a score asks.

    `pipe` is called like JointDiTPipeline, with this guidance (None: the checkpoint's own for depth). Estimates are
    kept, so that scores which need the same one share it.
    """

    def __init__(self, results: Sequence[SampleResult], pipe: Any, guidance: float | None) -> None:
        self.results = tuple(results)
        self._pipe = pipe
        self._guidance = guidance
        self._estimates: dict[tuple[int, int], list[NDArray[np.float32]]] = {}

    def images(self) -> list[NDArray[np.uint8]]:
        """The images (h, w, 3), without padding."""
        return [result.without_padding(_present(result.rgb)) for result in self.results]

    def disparities(self) -> list[NDArray[np.float32]]:
        """Their relative disparities (h, w), without padding."""
        return [result.without_padding(_present(result.disparity)) for result in self.results]

    def estimate(self, number: int, steps: int) -> list[NDArray[np.float32]]:
        """The `number`-th estimate of the images' disparity (h, w), without padding; NaN where the model fails.

        Its noise comes from the sample's seed and `number`, in a stream of its own: neither the noise that made the
        sample, nor the same in another batch.
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
            self._estimates[number, steps] = [result.without_padding(found) for result, found in pairs]
        return self._estimates[number, steps]


Scorer = Callable[[ScoredBatch], list[dict[str, float]]]
"""The scores of each sample by name; one that cannot be measured is left out."""


class ModelScored(Filter):
    """A filter whose scores a worker measures."""

    measured_with: ClassVar[tuple[str, ...]] = ()  # the fields that say how; the others are thresholds

    @staticmethod
    def measure(result: SampleResult) -> dict[str, float]:
        """Nothing: pixels alone do not tell."""
        return {}

    @classmethod
    def refusal(cls, task: str) -> str | None:
        """Why these scores make no sense for a task, a sentence without its end; None where they do."""
        return None

    def check(self) -> None:
        """Refuse settings or files that no worker could measure with. Raises SpecError, ModelError."""

    def weights(self) -> str | None:
        """The folder or hub name of the model that is loaded beside the job's own; None where there is none."""
        return None

    @abstractmethod
    def cost(self) -> str:
        """What measuring a sample costs, in a few words."""

    @abstractmethod
    def load(self, device: str) -> Scorer:
        """What measures, ready on a device ("cpu", "cuda"). Raises ModelError."""


def estimate_seed(seed: int, number: int) -> int:
    """63 bits for the noise of a sample's `number`-th estimate, which depend on the sample's seed and nothing else."""
    digest = hashlib.sha256(f"{seed}\0estimate\0{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _present(array: NDArray[Any] | None) -> NDArray[Any]:
    assert array is not None, "only samples with pixels are scored"
    return array

"""`model.compile`: blocks by torch.compile, in the worker's own way of loading."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jointdit.errors import ModelError
from pipelines.model.loading import load_pipeline
from pipelines.spec.job import ModelSpec

# torch's own modules warn of torch.jit where they import each other.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")]


@pytest.mark.timeout(1800)
def test_compiled_blocks_give_the_same_depth() -> None:
    plain, compiled = (load_pipeline(ModelSpec(dtype="float32", compile=compile_), "cpu") for compile_ in (False, True))
    blocks = [*compiled.transformer.transformer_blocks, *compiled.transformer.single_transformer_blocks]
    assert all(block._compiled_call_impl is not None for block in blocks)
    images = np.random.default_rng(0).integers(0, 256, (3, 128, 128, 3), dtype=np.uint8)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for rows, refresh in ((3, 1), (1, 1), (2, 3), (1, 3)):
        arguments = {"image": list(images[:rows]), "task": "depth", "seeds": list(range(rows))}
        ours, theirs = (
            pipe(**arguments, num_inference_steps=4, condition_refresh=refresh) for pipe in (compiled, plain)
        )
        np.testing.assert_allclose(ours.disparity, theirs.disparity, atol=2e-3, rtol=0)
    words = {"prompt": "a red cube on a blue floor", "seeds": [5]}
    given = {"task": "depth-to-image", "disparity": np.linspace(0, 1, 128, dtype=np.float32)[:, None].repeat(128, 1)}
    for arguments in (words | {"task": "joint"}, words | given):
        ours, theirs = (pipe(**arguments, num_inference_steps=4) for pipe in (compiled, plain))
        np.testing.assert_allclose(ours.disparity, theirs.disparity, atol=2e-3, rtol=0)
        np.testing.assert_allclose(ours.rgb.astype(int), theirs.rgb, atol=2, rtol=0)
    assert not torch._dynamo.utils.counters["graph_break"], "blocks are compiled whole"


@pytest.mark.timeout(1800)
def test_compiled_blocks_in_bfloat16_are_as_near_to_float32_as_plain_ones() -> None:
    """A compiled block rounds at other places than a plain one: neither may be the worse for it."""
    torch._dynamo.reset()
    images = np.random.default_rng(0).integers(0, 256, (8, 128, 128, 3), dtype=np.uint8)
    specs = (ModelSpec(dtype="float32"), ModelSpec(dtype="bfloat16"), ModelSpec(dtype="bfloat16", compile=True))
    arguments = {"image": list(images), "task": "depth", "seeds": list(range(8)), "num_inference_steps": 4}
    exact, plain, compiled = (load_pipeline(spec, "cpu")(**arguments).disparity for spec in specs)
    assert 0 < np.abs(compiled - exact).mean() < 1.5 * np.abs(plain - exact).mean()


def test_a_machine_without_a_compiler_is_told_before_any_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    torch._dynamo.reset()
    with pytest.raises(ModelError, match=r"model\.compile is true, and torch\.compile does not work on cpu"):
        load_pipeline(ModelSpec(compile=True), "cpu")

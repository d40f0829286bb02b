"""Checkpoints of a training run: what they hold, what is read of them, and the average beside the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from jointdit.errors import ModelError, SpecError, StoreError
from jointdit.profiling.tensor_memory import TensorMemory
from jointdit.training.adapter import ADAPTER, CHECKPOINT, averaged, check_same_run
from jointdit.training.adapter_spec import AdapterTraining, OptimizerSpec
from jointdit.training.checkpoint import load_training, save_training, training_state
from jointdit.training.optimizers import build_optimizer
from tests.jointdit.training.test_adapter_training import run


def test_a_checkpoint_that_cannot_be_written_is_an_error_of_the_store(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = build_optimizer(OptimizerSpec(), [parameter])
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="make room"):
        save_training(tmp_path / "file" / "x.safetensors", [("p", parameter)], None, optimizer, 1)


def test_facts_of_a_checkpoint_are_read_by_their_present_names(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    facts = AdapterTraining(steps=2).decides(workers=1)
    before = {name.replace("optimizer", "optimiser"): value for name, value in facts.items()}
    assert before.keys() - facts.keys()
    path = tmp_path / "x.safetensors"
    optimizer = build_optimizer(OptimizerSpec(), [parameter])
    save_training(path, [("p", parameter)], None, optimizer, 1, before)
    check_same_run(path, facts)
    with pytest.raises(SpecError, match=r"differs in training\.optimizer\.kind \(adafactor there, muon here\)"):
        check_same_run(path, {**facts, "training.optimizer.kind": "muon"})


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"no")
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = build_optimizer(OptimizerSpec(), [parameter])
    with pytest.raises(ModelError, match="not a readable checkpoint"):
        load_training(tmp_path / "x.safetensors", [("p", parameter)], None, optimizer)


def test_a_run_without_an_average_stores_its_weights_once(tmp_path: Path) -> None:
    """Also a checkpoint that has an unused average, as the earlier ones do, is read."""
    run(tmp_path / "whole", steps=2)
    run(tmp_path / "earlier", steps=1)
    state = load_file(tmp_path / "earlier" / CHECKPOINT)
    kinds = {name.partition(".")[0] for name in state}
    assert kinds == {"now", "exp_avg", "exp_avg_sq", "step"}
    with safe_open(tmp_path / "earlier" / CHECKPOINT, framework="pt") as file:
        header = file.metadata()
    average = {
        name.replace("now.", "ema.", 1): value.clone() for name, value in state.items() if name.startswith("now.")
    }
    save_file({**state, **average}, tmp_path / "earlier" / CHECKPOINT, metadata=header)
    run(tmp_path / "earlier", steps=2)
    whole, again = load_file(tmp_path / "whole" / ADAPTER), load_file(tmp_path / "earlier" / ADAPTER)
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_a_process_that_does_not_write_copies_no_weights() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = build_optimizer(OptimizerSpec(), [parameter])
    assert training_state([("p", parameter)], None, optimizer, keep=False)[0] == {}


def test_validation_sees_the_average_with_memory_for_one_more_parameter() -> None:
    parameters = [torch.nn.Parameter(torch.full((256,), float(n))) for n in range(8)]
    average = [torch.full((256,), -1.0 - n) for n in range(8)]
    with TensorMemory() as memory:
        before = memory.hold([*parameters, *average])
        with averaged(parameters, average):
            assert [float(p[0].detach()) for p in parameters] == [-1.0 - n for n in range(8)]
    assert memory.peak - before <= 2 * parameters[0].nbytes
    assert [float(p[0].detach()) for p in parameters] == list(range(8))
    assert [float(value[0]) for value in average] == [-1.0 - n for n in range(8)]
    with averaged(parameters, None):
        assert [float(p[0].detach()) for p in parameters] == list(range(8))

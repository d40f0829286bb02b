"""The sampling schedule and text length that a job's base brings, read by the driver without torch.

FLUX.1-dev shifts its noise levels by the number of image tokens and reads 512 T5 tokens; FLUX.1-schnell has no shift
and reads 256. A FLUX pipeline says which in its scheduler's config; a network alone by its guidance embedding, which
schnell lacks. jointdit/sampling/solvers.py has the same rules for the workers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipelines.model.weights.headers import read_file, tensor_names
from pipelines.model.weights.pins import Pin
from pipelines.model.weights.selection import SCHEDULER

SCHNELL_TOKENS = 256
SCHNELL = {"shift": 1.0}
# The settings of FLUX.1-dev's scheduler that decide its noise levels; a config may leave them out.
DEV = {"base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096}


class BaseSampling(NamedTuple):
    """What a base says; None where it says what FLUX.1-dev says, or a checkpoint has a setting of its own."""

    schedule: dict[str, Any] | None = None
    text_tokens: int | None = None


FLUX_DEV = BaseSampling()


def sampling_of(pins: Sequence[Pin]) -> BaseSampling:
    """Read what the base of these pins says. Files that cannot be read are left to the check of the weights."""
    by_field = {each.field.removeprefix("model."): each for each in pins}
    network = by_field.get("base") or by_field.get("name")
    if network is None:
        return BaseSampling()
    whole = by_field.get("components", network)
    index = _read(whole, "model_index.json")
    config = _read(whole, SCHEDULER) if index.get("scheduler") and whole is network else {}
    schedule = _schedule_of(config) if config else _schedule_without_config(network)
    is_shifted = schedule is None or schedule.get("shift") != 1
    has_length = "max_sequence_length" in index
    return BaseSampling(schedule, None if is_shifted or has_length else SCHNELL_TOKENS)


def _schedule_of(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the settings of the noise levels; the steps are those of `model.scheduler`."""
    if not config.get("use_dynamic_shifting", False):
        return {"shift": config.get("flow_shift", config.get("shift", 1.0))}
    found = {name: config.get(name, value) for name, value in DEV.items()}
    return None if found == DEV else found


def _schedule_without_config(network: Pin) -> dict[str, Any] | None:
    return None if _has_guidance(network) else SCHNELL


def _has_guidance(network: Pin) -> bool:
    for name in ("transformer/config.json", "config.json"):
        if config := _read(network, name):
            return bool(config.get("guidance_embeds", False))
    if network.single is None:
        return True
    return any(name.endswith("guidance_in.in_layer.weight") for name in tensor_names(network, network.single))


def _read(one: Pin, name: str) -> dict[str, Any]:
    data = read_file(one, name)
    try:
        config: Any = json.loads(data) if data is not None else {}
    except ValueError:
        config = {}
    return config if isinstance(config, dict) else {}

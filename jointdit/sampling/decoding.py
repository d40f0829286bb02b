"""The last step of a call of JointDiTPipeline: from latents to the output in the form that was asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jointdit.evaluation.ensemble import ensemble_maps
from jointdit.geometry.depth import SizeMapping, restore_size
from jointdit.loading.adapter_flags import DepthTransform
from jointdit.pixels import vae_to_disparity, vae_to_image
from jointdit.sampling.inputs import CallInputs, OutputType
from jointdit.sampling.output import JointDiTOutput, as_pil, image_tensor, map_tensor

Decode = Callable[[torch.Tensor], torch.Tensor]  # packed latents (B, N, C) to pixels (B, 3, H, W) on the CPU


def decode_output(
    inputs: CallInputs,
    latents: tuple[torch.Tensor, torch.Tensor],
    decode: Decode,
    *,
    depth_transform: DepthTransform,
    output_type: OutputType,
    output_uncertainty: bool,
    match_input_resolution: bool,
) -> JointDiTOutput:
    """Decode latents of RGB and depth, (M, N, C) each, merge ensembles, restore the input's size.

    What was given is not decoded: it is returned itself. depth_transform: of the adapter.
    """
    if output_type == "latent":
        rows = torch.stack([half.isfinite().flatten(1).all(dim=1) for half in latents]).all(dim=0)
        return JointDiTOutput(rgb=latents[0], disparity=latents[1], finite=rows.cpu().numpy())
    ensemble = inputs.members // inputs.samples
    mapping = inputs.mapping if inputs.mapping is None or match_input_resolution else _without_resizing(inputs.mapping)
    source = None
    if inputs.fitted is not None:
        source = _source(inputs, match_input_resolution)[inputs.condition_rows[::ensemble]]

    decoded: torch.Tensor | None = None
    if inputs.images is None:
        decoded = decode(latents[0])
        images, finite = vae_to_image(decoded)
        images = _restored(images, mapping)
    else:
        images, finite = np.asarray(source), np.ones(inputs.members, dtype=bool)
    maps = np.asarray(source) if inputs.maps is not None else vae_to_disparity(decode(latents[1]), depth_transform)
    finite &= np.isfinite(maps).all(axis=(1, 2))
    finite = np.logical_and.reduce(finite.reshape(inputs.samples, ensemble), axis=1)
    maps, spread = _merged(maps, finite, ensemble)
    if inputs.maps is None:
        maps, spread = _restored(maps, mapping), _restored(spread, mapping)

    output = JointDiTOutput(
        rgb=np.where(finite[:, None, None, None], images, np.uint8(0)),
        disparity=np.where(finite[:, None, None], maps, np.float32(np.nan)),
        finite=finite,
        uncertainty=spread if output_uncertainty else None,
    )
    return _in_form(output, output_type, decoded if mapping is None else None)


def _in_form(output: JointDiTOutput, output_type: OutputType, decoded: torch.Tensor | None) -> JointDiTOutput:
    """Convert arrays to the form that was asked for. decoded: images (B, 3, H, W) before their rounding to 8 bits."""
    if output_type == "pil":
        output.rgb, output.disparity = as_pil(output.rgb, output.disparity)
    elif output_type == "pt":
        output.rgb, output.disparity = image_tensor(output.rgb), map_tensor(output.disparity)
        if decoded is not None:
            unit = (decoded.nan_to_num() + 1).clamp(0, 2) / 2
            output.rgb = unit * torch.from_numpy(output.finite)[:, None, None, None]
        if output.uncertainty is not None:
            output.uncertainty = map_tensor(output.uncertainty)
    return output


def _source(inputs: CallInputs, match_input_resolution: bool) -> NDArray[Any]:
    """Return the images or maps (K, ...) at the size of the output."""
    assert inputs.fitted is not None
    if inputs.mapping is None:
        return inputs.fitted
    if match_input_resolution:
        return inputs.images if inputs.images is not None else np.asarray(inputs.maps)
    return _restored(inputs.fitted, _without_resizing(inputs.mapping))


def _merged(
    maps: NDArray[np.float32], finite: NDArray[np.bool_], ensemble: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Merge consecutive maps (S * ensemble, H, W) to (S, H, W); also return their spread, NaN where not finite."""
    if ensemble == 1:
        return maps, np.zeros_like(maps)
    members = maps.reshape(-1, ensemble, *maps.shape[1:])
    merged, spread = (np.full_like(members[:, 0], np.nan) for _ in range(2))
    for index in np.flatnonzero(finite):
        merged[index], spread[index] = ensemble_maps(members[index])
    return merged, spread


def _restored(arrays: NDArray[Any], mapping: SizeMapping | None) -> NDArray[Any]:
    return arrays if mapping is None else np.stack([restore_size(each, mapping) for each in arrays])


def _without_resizing(mapping: SizeMapping) -> SizeMapping:
    """Return a mapping whose source is the network's image without its padding."""
    width, height = mapping.content_width, mapping.content_height
    return replace(
        mapping,
        source_width=width,
        source_height=height,
        window_left=0,
        window_top=0,
        window_width=width,
        window_height=height,
    )

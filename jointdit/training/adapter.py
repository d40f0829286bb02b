"""Train an adapter: the LoRA of the depth half and the joint connections.

    checkpoint -> for each step: pairs -> latents -> noise -> loss -> gradient -> optimizer -> average -> adapter

The inputs of a step depend only on (seed, step): batches.py selects the pairs, the step's generator draws noise levels
and dropped captions, and each pair has its own generator for its noise. So they do not depend on the division into
batches and workers, or on interruptions. Paper: joint conditional flow matching with unbalanced noise levels (arXiv
2505.00482).
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from jointdit.errors import ModelError, SpecError
from jointdit.flow_matching import sample_timesteps
from jointdit.loading import official
from jointdit.loading.adapter_flags import write_flags
from jointdit.loading.cpu_dtype import autocast_to_bfloat16, fast_dtype, slow_note
from jointdit.model.latents import image_position_ids, seeded_noise
from jointdit.model.transformer import JointDiTTransformer2DModel
from jointdit.training.adapter_spec import AdapterTraining
from jointdit.training.batches import BatchPlan, random_seed
from jointdit.training.checkpoint import NamedParameters, load_training, read_facts, replacing, save_training
from jointdit.training.encoding import encode_pairs
from jointdit.training.loss import NoisyPairs, dropped_share, velocity_loss
from jointdit.training.optimizers import build_optimizer, learning_rate_factor
from jointdit.training.pairs import Bucket, EncodedPair, Pair, PairSource
from jointdit.training.parallel import World, gather_whole, mean_over_workers, skip_synchronisation, wrap
from jointdit.training.record import Report, TrainingRecord
from jointdit.training.validation import validate

if TYPE_CHECKING:
    from jointdit.pipeline import JointDiTPipeline

CHECKPOINT = "training.safetensors"
ADAPTER = "adapter.safetensors"
Batch = Sequence[Pair | EncodedPair]


class Noise(NamedTuple):
    """Random draws of a step for all its G pairs: noise levels (G,), and which captions are dropped (G,)."""

    t_rgb: torch.Tensor
    t_disparity: torch.Tensor
    dropped: torch.Tensor


def train_adapter(
    training: AdapterTraining,
    pipe: JointDiTPipeline,
    source: PairSource,
    folder: Path,
    seed: int = 0,
    facts: Mapping[str, Any] | None = None,
    world: World | None = None,
    report: Report = print,
) -> Path:
    """Train the adapter of a pipeline's transformer in place; resume a run from the checkpoint in `folder`.

    Writes `adapter.safetensors` in the published layout to `folder` and returns its path. The transformer ends with the
    same weights, which are the moving average if there is one. facts: further fields that determine the result.

    Raises:
        SpecError: the run in the folder was started with other facts; the message names them.
        InputError: a pair cannot be used.
        ModelError: the checkpoint belongs to another network, or the loss is not finite.
        StoreError: a file cannot be written.
    """
    world = world or World()
    network = pipe.transformer
    prepare_network(network, training)
    facts = {**training.decides(world.size), "seed": seed, **(facts or {})}
    checkpoint = folder / CHECKPOINT
    if checkpoint.exists():
        check_same_run(checkpoint, facts)
    plan = BatchPlan(source, training.buckets, training.pairs_a_step(world.size), seed)
    forward = wrap(network, world)
    named = list(network.adapter_named_parameters())
    parameters = [parameter for _, parameter in named]
    optimizer = build_optimizer(training.optimizer, parameters)
    average = [p.detach().clone() for p in parameters] if training.ema else None
    start = load_training(checkpoint, named, average, optimizer) if checkpoint.exists() else 0
    if start and world.is_main:
        report(f"resumes at step {start}")
    if world.is_main and training.precision == "bfloat16" and fast_dtype(world.device) != torch.bfloat16:
        report(slow_note(torch.bfloat16))
    record = None
    if world.is_main:
        record = TrainingRecord(folder, start, training.steps, training.pairs_a_step(world.size), report)
    empty = encode_empty(pipe)
    try:
        for step, bucket, micro_batches in read_ahead(plan, source, training, world, start):
            optimizer.zero_grad(set_to_none=True)
            img_ids, noise = token_ids(pipe, bucket, world), draw(training, world, seed, step)
            loss = 0.0
            for number, batch in enumerate(micro_batches):
                is_last = number == len(micro_batches) - 1
                positions = positions_of(training, world, number)
                inputs = assemble(pipe, batch, empty, noise, positions, seed, step, world)
                with skip_synchronisation(forward, not is_last), computing(training, world):
                    part = velocity_loss(network, forward, inputs, img_ids)
                    (part / training.accumulate).backward()
                loss += part.item() / training.accumulate
            loss = mean_over_workers(loss, world)
            if not math.isfinite(loss):
                raise ModelError(
                    f"the loss is {loss} at step {step + 1}: lower training.optimizer.learning_rate; the last "
                    "checkpoint is kept."
                )
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            if (limit := training.optimizer.gradient_clip) is not None:
                torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
            factor = learning_rate_factor(step, training.steps, training.optimizer)
            for group in optimizer.param_groups:
                group["lr"] = training.optimizer.learning_rate * factor
            optimizer.step()
            if average is not None:
                update_average(average, parameters, training.ema, step + 1)
            _after_step(training, pipe, named, average, optimizer, folder, facts, world, record, step + 1, loss, norm)
    finally:
        if record is not None:
            record.close()
    if average is not None:
        exchange(parameters, average)
    return save_adapter(network, folder / ADAPTER, world)


def prepare_network(network: JointDiTTransformer2DModel, training: AdapterTraining) -> None:
    """Freeze the base and convert it to a dtype that its device computes fast; keep the adapter in float32."""
    if training.precision == "float32" and network.x_embedder.weight.dtype != torch.float32:
        raise SpecError(
            f"training.precision is float32, and the base's weights are {network.x_embedder.weight.dtype}: "
            "set model.dtype to float32, or precision to bfloat16."
        )
    network.requires_grad_(False)
    weight = network.x_embedder.weight
    if (dtype := fast_dtype(weight.device, weight.dtype)) != weight.dtype:
        network.to(dtype)
    for parameter in network.adapter_parameters():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    if training.gradient_checkpointing:
        network.enable_gradient_checkpointing()


def check_same_run(checkpoint: Path, facts: Mapping[str, Any]) -> None:
    """Raise SpecError if the facts of a checkpoint and this run differ; the message names them."""
    step, recorded = read_facts(checkpoint)
    names = [name for name in {**recorded, **facts} if recorded.get(name) != facts.get(name)]
    if names:
        pairs = [f"{name} ({recorded.get(name)} there, {facts.get(name)} here)" for name in names]
        raise SpecError(
            f"{checkpoint.parent} contains a run, at step {step}, that differs in {', '.join(pairs)}: "
            "choose another output, or use its values."
        )


@torch.no_grad()
def encode_empty(pipe: JointDiTPipeline) -> tuple[torch.Tensor, torch.Tensor]:
    """Return T5 states (T, D) and CLIP pooled output (P,) of the empty prompt."""
    states, pooled = pipe.encode_prompt([None])
    return states[0], pooled[0]


def draw(training: AdapterTraining, world: World, seed: int, step: int) -> Noise:
    """Draw noise levels and dropped captions of all pairs of a step; all workers draw the same."""
    pairs = training.pairs_a_step(world.size)
    generator = torch.Generator().manual_seed(random_seed(seed, "levels", step))
    t_rgb, t_disparity = sample_timesteps(pairs, generator)
    share = dropped_share(t_rgb, t_disparity, training.text_drop, training.text_drop_depth)
    return Noise(t_rgb, t_disparity, torch.rand(pairs, generator=generator) < share)


def positions_of(training: AdapterTraining, world: World, number: int) -> range:
    """Return the positions of this worker's batch `number` among the pairs of a step."""
    first = (number * world.size + world.rank) * training.batch_size
    return range(first, first + training.batch_size)


def read_ahead(
    plan: BatchPlan, source: PairSource, training: AdapterTraining, world: World, start: int
) -> Iterator[tuple[int, Bucket, list[Batch]]]:
    """Yield (step, bucket, this worker's batches) for the remaining steps; the next step is read ahead."""

    def read(step: int) -> tuple[int, Bucket, list[Batch]]:
        bucket, numbers = plan.pairs_of(step)
        places = [positions_of(training, world, number) for number in range(training.accumulate)]
        return step, bucket, [source.read(numbers[place.start : place.stop].tolist(), bucket) for place in places]

    with ThreadPoolExecutor(1) as pool:
        waiting: Future[tuple[int, Bucket, list[Batch]]] | None = None
        for step in range(start, training.steps):
            ready = (waiting or pool.submit(read, step)).result()
            waiting = pool.submit(read, step + 1) if step + 1 < training.steps else None
            yield ready


def assemble(
    pipe: JointDiTPipeline,
    batch: Batch,
    empty: tuple[torch.Tensor, torch.Tensor],
    noise: Noise,
    positions: range,
    seed: int,
    step: int,
    world: World,
) -> NoisyPairs:
    """Build the batch on the worker's device: clean latents, noise, noise levels, text embeddings."""
    encoded = [pair for pair in batch if isinstance(pair, EncodedPair)]
    pixels = [pair for pair in batch if isinstance(pair, Pair)]  # all pairs of a source are of one kind
    if encoded and pipe.depth_transform != "none":
        raise SpecError(
            f"data.kind is encoded, and the adapter has depth_transform {pipe.depth_transform}: encoded pairs hold "
            "plain disparity, so use data.kind table or dataset."
        )
    if pixels:
        encoded = encode_pairs(pipe, pixels)
    if other := [len(pair.states) for pair in encoded if len(pair.states) != len(empty[0])]:
        raise SpecError(
            f"data.kind is encoded, with {other[0]} text tokens, and the model reads {len(empty[0])}: encode the pairs "
            "again with this model."
        )
    rgb, disparity = torch.stack([p.rgb for p in encoded]), torch.stack([p.disparity for p in encoded])
    clean = torch.cat([rgb, disparity]).to(world.device, torch.float32)
    seeds = [random_seed(seed, "noise", step, position) for position in positions]
    epsilon = seeded_noise(seeds, (2, *clean.shape[1:]))
    window = slice(positions.start, positions.stop)
    dropped = noise.dropped[window]
    states = [empty[0] if drop else pair.states for drop, pair in zip(dropped, encoded, strict=True)]
    pooled = [empty[1] if drop else pair.pooled for drop, pair in zip(dropped, encoded, strict=True)]
    dtype = pipe.transformer.x_embedder.weight.dtype
    return NoisyPairs(
        clean=clean,
        noise=torch.cat([epsilon[:, 0], epsilon[:, 1]]).to(world.device),
        t=torch.cat([noise.t_rgb[window], noise.t_disparity[window]]).to(world.device),
        states=torch.stack([each.to(world.device, dtype) for each in states]),
        pooled=torch.stack([each.to(world.device, dtype) for each in pooled]),
    )


def token_ids(pipe: JointDiTPipeline, bucket: Bucket, world: World) -> torch.Tensor:
    """Return position ids (N, 3) of a bucket's tokens."""
    height, width = (side // pipe.size_multiple for side in bucket)
    return image_position_ids(height, width, world.device)


@contextlib.contextmanager
def computing(training: AdapterTraining, world: World) -> Iterator[None]:
    """Return a context with mixed precision, if the spec asks for it and the device computes it fast."""
    enabled = training.precision == "bfloat16"
    with autocast_to_bfloat16(world.device, enabled), warnings.catch_warnings():
        # RMSNorm of a bfloat16 input with a float32 weight is not fused; autocast is faster nevertheless.
        warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")
        # FSDP warns of in-place changes to outputs of a block; the blocks of FLUX make none.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
        yield


@torch.no_grad()
def update_average(
    average: Sequence[torch.Tensor], parameters: Sequence[torch.nn.Parameter], ema: float, step: int
) -> None:
    """Update the moving average; in early steps it follows the parameters closely."""
    weight = 1 - min(ema, step / (step + 10))
    for mean_value, parameter in zip(average, parameters, strict=True):
        mean_value.lerp_(parameter.detach(), weight)


@torch.no_grad()
def exchange(parameters: Sequence[torch.nn.Parameter], average: Sequence[torch.Tensor]) -> None:
    """Exchange the values of the parameters and of their average in place, with memory for one more parameter."""
    for parameter, value in zip(parameters, average, strict=True):
        kept = parameter.detach().clone()
        parameter.copy_(value)
        value.copy_(kept)


@contextlib.contextmanager
def averaged(parameters: Sequence[torch.nn.Parameter], average: Sequence[torch.Tensor] | None) -> Iterator[None]:
    """Set the parameters to their average inside this context; None: there is none."""
    if average is None:
        yield
        return
    exchange(parameters, average)
    try:
        yield
    finally:
        exchange(parameters, average)


def save_adapter(network: JointDiTTransformer2DModel, path: Path, world: World) -> Path:
    """Write the adapter in the published layout, float32. Raises StoreError if it cannot be written."""
    state = {name: gather_whole(parameter) for name, parameter in network.adapter_named_parameters()}
    if world.is_main:
        tensors = official.adapter_tensors(network.config.num_layers, network.config.num_single_layers)
        with replacing(path) as unfinished:
            official.write_official(unfinished, official.gather_official(state, tensors))
        write_flags(path, network.config.depth_transform)
    return path


def _after_step(
    training: AdapterTraining,
    pipe: JointDiTPipeline,
    named: NamedParameters,
    average: Sequence[torch.Tensor] | None,
    optimizer: torch.optim.Optimizer,
    folder: Path,
    facts: Mapping[str, Any],
    world: World,
    record: TrainingRecord | None,
    step: int,
    loss: float,
    norm: torch.Tensor,
) -> None:
    """Record the step; report, save and validate at their intervals."""
    is_last = step == training.steps
    gradient_norm = float(gather_whole(norm))
    if record is not None:
        record.step(step, loss, gradient_norm, optimizer.param_groups[0]["lr"])
        if step % training.report_every == 0 or is_last:
            record.progress(step)
    if step % training.checkpoint_every == 0 or is_last:
        save_training(folder / CHECKPOINT, named, average, optimizer, step, facts, write=world.is_main)
    every = training.validation.every
    if every and (step % every == 0 or is_last):
        # A sharded network needs all workers; otherwise the main worker validates.
        with averaged([parameter for _, parameter in named], average):
            if world.is_main or world.strategy == "fsdp":
                scores, sheet = validate(pipe, training.validation, training.buckets[0])
                if record is not None:
                    record.validation(step, scores, sheet)
        world.wait()

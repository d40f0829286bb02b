"""Training on Ray Train: check the spec, start the workers, restart them after a loss.

    run_training(job) -> check -> TorchTrainer(train_worker) -> adapter.safetensors and pipeline/ in job.output

The state of a run is its checkpoint in the output folder, written by jointdit/training. Ray stores no state: the death
of a worker ends the attempt, and the next attempt resumes from the checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jointdit.errors import JointDiTError, PermanentError, StoreError
from jointdit.training.pairs import PairSource, ScenePairs
from pipelines.engine.cluster import connect
from pipelines.model.identity import ModelIdentity, check_weights, identify
from pipelines.spec.job import ModelSpec
from pipelines.store.errors import TransientError
from pipelines.training.spec import AdapterJob, TrainedModel

if TYPE_CHECKING:
    from jointdit.pipeline import JointDiTPipeline

LOG = "train.log"
FOLLOW_SECONDS = 0.5


@dataclass(frozen=True)
class Trained:
    """The files of a finished training."""

    adapter: Path  # in the published layout
    pipeline: Path | None  # a checkpoint folder


def run_training(job: AdapterJob, report: Callable[[str], None] = print) -> Trained:
    """Start or resume a training, and run it to the end.

    Raises:
        PermanentError: a retry would fail too; the last checkpoint is kept.
        TransientError: workers were lost too often.
    """
    facts = check(job)
    folder = Path(job.output)
    folder.mkdir(parents=True, exist_ok=True)
    with connect():
        check_room(job)
        for attempt in range(job.resources.max_failures + 1):
            with following(folder / LOG, report):
                error = _attempt(job, facts)
            if error is None:
                break
            if isinstance(error, JointDiTError):
                raise error
            sentence = " ".join(str(error).split())
            if attempt == job.resources.max_failures:
                raise TransientError(
                    f"training stopped {attempt + 1} times, the last time with {type(error).__name__}: "
                    f"{sentence[-300:]}; run again to resume from the last checkpoint."
                ) from error
            report(f"a worker was lost ({type(error).__name__}); resuming from the last checkpoint")
    return Trained(folder / "adapter.safetensors", folder / "pipeline" if job.save_pipeline else None)


def check(job: AdapterJob) -> dict[str, Any]:
    """Check the job before Ray starts and before anything is written; returns the facts of the run.

    Raises:
        SpecError, ModelError, InputError: the job cannot be run.
    """
    from jointdit.training.adapter import CHECKPOINT, check_same_run

    facts = facts_of(job)
    checkpoint = Path(job.output) / CHECKPOINT
    if checkpoint.exists():
        check_same_run(checkpoint, {**job.training.decides(job.resources.workers), "seed": job.seed, **facts})
    check_model(job.model)
    source = open_source(job)
    source.read([0], job.training.buckets[0])  # finds errors that all pairs have
    return facts


def facts_of(job: AdapterJob) -> dict[str, Any]:
    """Return the fields outside the training section that determine the result, ready for JSON."""
    identities = {
        field: identify_source(field, value)
        for field in ("name", "base", "adapter")
        if (value := getattr(job.model, field)) is not None
    }
    data = job.data.model_dump(mode="json")
    if job.data.depth is not None:
        data["depth"] = job.data.depth.identity()
    others: dict[str, Any] = {}  # only where they are not FLUX.1-dev's, so that earlier runs resume
    for one in identities.values():
        if one.sampling.text_tokens is not None:
            others["model.text_tokens"] = one.sampling.text_tokens
        if one.depth_transform != "none":
            others["model.depth_transform"] = one.depth_transform
    return {
        "model.weights": ",".join(f"{field}:{one.weights}" for field, one in identities.items()),
        **others,
        "model.lora_ranks": job.model.lora_ranks,
        "model.dtype": job.model.dtype,
        **{f"data.{name}": value for name, value in data.items()},
    }


def identify_source(field: str, value: str) -> ModelIdentity:
    """Identify a checkpoint or an adapter."""
    if field == "adapter":
        return identify(ModelSpec(base="tiny", adapter=value))
    return identify(ModelSpec(name=value))


def check_model(model: TrainedModel) -> None:
    """Check a checkpoint from the headers of its files. Raises ModelError if it does not fit."""
    if model.name is not None:
        check_weights(ModelSpec(name=model.name))
    elif model.adapter is not None:
        check_weights(ModelSpec(base=model.base, adapter=model.adapter))


def open_source(job: AdapterJob) -> PairSource:
    """Open the source of pairs. Raises InputError if it is empty, or a column is missing."""
    if job.data.kind == "scenes":
        return ScenePairs(job.data.count)
    if job.data.kind == "encoded":
        from pipelines.training.encoded import LatentPairs

        return LatentPairs(job.data.as_input(), job.model.name or job.model.base or "")
    from pipelines.training.tables import TablePairs

    return TablePairs(job.data.as_input())


def check_room(job: AdapterJob) -> None:
    """Raise PermanentError if the cluster has too few resources, for which Ray would wait without a message."""
    import ray

    have, wanted = ray.cluster_resources(), job.resources
    for kind, each in (("GPU", wanted.gpus_per_worker), ("CPU", wanted.cpus_per_worker)):
        if each * wanted.workers > have.get(kind, 0.0):
            raise PermanentError(
                f"resources: {wanted.workers} workers of {each:g} {kind}s do not fit into a cluster with "
                f"{have.get(kind, 0.0):g}: ask for fewer."
            )


def _attempt(job: AdapterJob, facts: dict[str, Any]) -> Exception | None:
    """Run the workers to the end; returns the error that stopped them, unwrapped if it is a JointDiTError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Ray warns of its own settings
        from ray.train import RunConfig, ScalingConfig, TrainingFailedError
        from ray.train.torch import TorchConfig, TorchTrainer

        on_gpu = job.resources.gpus_per_worker > 0
        each = {"CPU": job.resources.cpus_per_worker}
        if on_gpu:
            each["GPU"] = job.resources.gpus_per_worker
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={"job": job.model_dump(mode="json", exclude_unset=True), "facts": facts},
            torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
            scaling_config=ScalingConfig(num_workers=job.resources.workers, use_gpu=on_gpu, resources_per_worker=each),
            run_config=RunConfig(name="ray", storage_path=job.output),
        )
        logging.getLogger("ray.train").setLevel(logging.ERROR)
        try:
            trainer.fit()
        except TrainingFailedError as error:
            for failure in getattr(error, "worker_failures", {}).values():
                if (ours := error_of_ours(failure)) is not None:
                    return ours
            return error
    return None


def error_of_ours(error: BaseException | None) -> JointDiTError | None:
    """Return the JointDiTError that Ray has wrapped, or None."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, JointDiTError):
            return error
        # Ray Train stores a worker's error in `_base_exc`, tasks and actors in `cause`.
        error = getattr(error, "_base_exc", None) or getattr(error, "cause", None) or error.__cause__
    return None


def train_worker(config: dict[str, Any]) -> None:
    """Run one worker in a process of Ray Train: load the model, train, save the adapter."""
    import torch
    from ray import train
    from ray.train.torch import get_device

    from jointdit.training.adapter import train_adapter
    from jointdit.training.parallel import World

    job = AdapterJob.model_validate(config["job"])
    place = train.get_context()
    device = get_device()
    if device.type == "cpu":
        torch.set_num_threads(job.resources.threads or max(1, int(job.resources.cpus_per_worker)))
    world = World(place.get_world_rank(), place.get_world_size(), device, job.resources.strategy)
    pipe = load_for_training(job.model, device)
    folder = Path(job.output)
    with (folder / LOG).open("a", encoding="utf-8") as log:

        def report(line: str) -> None:
            log.write(f"{line}\n")
            log.flush()

        train_adapter(job.training, pipe, open_source(job), folder, job.seed, config["facts"], world, report)
        if job.save_pipeline and world.strategy == "fsdp":
            from jointdit.training.parallel import unshard

            unshard(pipe.transformer)
        if job.save_pipeline and world.is_main:
            save_pipeline(pipe, job, folder / "pipeline")
            report(f"finished: {folder / 'pipeline'}")


def load_for_training(model: TrainedModel, device: Any) -> JointDiTPipeline:
    """Load the pipeline whose adapter is trained, in a dtype that the device computes fast.

    Raises ModelError if it does not fit.
    """
    import torch
    from diffusers import FluxTransformer2DModel

    from jointdit.loading.checkpoint_files import load_component
    from jointdit.loading.cpu_dtype import fast_dtype
    from jointdit.model.transformer import JointDiTTransformer2DModel
    from jointdit.pipeline import JointDiTPipeline, local_checkpoint

    dtype = fast_dtype(device, getattr(torch, model.dtype))
    if model.adapter is not None:
        pipe = JointDiTPipeline.from_pretrained(base=model.base, adapter=model.adapter, torch_dtype=dtype)
    elif model.name is not None and model.lora_ranks is None:
        pipe = JointDiTPipeline.from_pretrained(model.name, torch_dtype=dtype)
    else:
        torch.manual_seed(0)  # a new adapter's A is random and must be equal on all workers
        folder = local_checkpoint(model.base or model.name or "")
        if model.base is not None:
            flux = load_component(FluxTransformer2DModel, folder / "transformer", dtype)
        else:
            flux = base_of(JointDiTTransformer2DModel.from_pretrained(folder / "transformer", dtype=dtype))
        transformer = JointDiTTransformer2DModel.from_flux(flux, lora_ranks=model.lora_ranks)
        pipe = JointDiTPipeline.from_pretrained(folder, transformer=transformer, torch_dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        part.requires_grad_(False)
    return pipe.to(device)


def base_of(network: Any) -> Any:
    """Copy the base of a JointDiT network to diffusers' FLUX."""
    from diffusers import FluxTransformer2DModel

    from jointdit.model.transformer import ADAPTER_SETTINGS, is_adapter

    config = {name: value for name, value in network.config.items() if name not in ADAPTER_SETTINGS and name[0] != "_"}
    flux = FluxTransformer2DModel(**config).to(network.dtype)
    state = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in network.state_dict().items()
        if not is_adapter(name)
    }
    flux.load_state_dict(state)
    return flux.eval()


def save_pipeline(pipe: JointDiTPipeline, job: AdapterJob, folder: Path) -> None:
    """Write a checkpoint folder atomically, in the spec's dtype."""
    import torch

    height, width = job.training.buckets[0]
    pipe.register_to_config(default_height=height, default_width=width)
    for part in (pipe.transformer, pipe.text_encoder, pipe.text_encoder_2):
        part.to(getattr(torch, job.model.dtype))
    unfinished = folder.with_name(f"{folder.name}.tmp")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        pipe.save_pretrained(unfinished)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(unfinished, folder)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        reason = " ".join(str(error).split())
        raise StoreError(f"{folder} cannot be written ({reason}): make room and run again.") from error


@contextlib.contextmanager
def following(log: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Report the lines that the workers add to their log inside this context."""
    log.touch()
    done = threading.Event()

    def follow() -> None:
        with log.open(encoding="utf-8") as lines:
            lines.seek(0, os.SEEK_END)
            begun = ""
            while True:
                last = done.wait(FOLLOW_SECONDS)
                for text in lines:
                    begun += text
                    if begun.endswith("\n"):
                        report(begun.rstrip("\n"))
                        begun = ""
                if last:
                    return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()

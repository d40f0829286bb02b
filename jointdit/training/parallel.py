"""Training on several workers with DDP or FSDP2.

A shared LoRA A is a Parameter of the layer that registers it, and all layers that use it are in the same block. So DDP
reduces it once, and FSDP gathers it together with the block.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import distributed
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from jointdit.model.transformer import JointDiTTransformer2DModel

Strategy = Literal["ddp", "fsdp"]


@dataclass(frozen=True)
class World:
    """The rank and device of this worker. With several workers torch.distributed must be initialised."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    strategy: Strategy = "ddp"

    @property
    def is_main(self) -> bool:
        """Whether this worker writes files."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait for all workers."""
        if self.size > 1:
            distributed.barrier()


def wrap(network: JointDiTTransformer2DModel, world: World) -> Callable[..., Any]:
    """Return the callable to use instead of the network. FSDP shards the network in place, also for one worker."""
    if world.strategy == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(world.device.type, (world.size,))
        for block in itertools.chain(network.transformer_blocks, network.single_transformer_blocks):
            fully_shard(block, mesh=mesh)
        fully_shard(network, mesh=mesh)
        return network
    if world.size == 1:
        return network
    devices = [world.device] if world.device.type == "cuda" else None
    return DistributedDataParallel(network, device_ids=devices, gradient_as_bucket_view=True)


def skip_synchronisation(forward: Callable[..., Any], skip: bool) -> contextlib.AbstractContextManager[Any]:
    """Return a context without gradient synchronisation if `skip`, for all but the last batch of a step."""
    if isinstance(forward, DistributedDataParallel) and skip:
        return forward.no_sync()
    return contextlib.nullcontext()


def mean_over_workers(value: float, world: World) -> float:
    """Return the mean of a number over all workers."""
    if world.size == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64, device=world.device)
    distributed.all_reduce(total)
    return total.item() / world.size


def gather_whole(tensor: torch.Tensor) -> torch.Tensor:
    """Gather a tensor that may be sharded on the CPU; all workers must call this."""
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    return tensor.detach().cpu()


def unshard(network: JointDiTTransformer2DModel) -> None:
    """Replace the sharded weights of a network by gathered ones, in place; all workers must call this."""
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if isinstance(parameter, DTensor):
                whole = torch.nn.Parameter(gather_whole(parameter), requires_grad=parameter.requires_grad)
                module.register_parameter(name, whole)

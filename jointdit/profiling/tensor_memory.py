"""Peak memory of tensors, measured by tracking live storages; also on the meta device.

The estimate of activations (activations.py) runs the model's own code on the meta device under this tracker. It needs
no memory and no arithmetic, and it stays correct when the code changes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class TensorMemory(TorchDispatchMode):
    """Inside this context, `current` and `peak` are the bytes of all live storages that operations have created.

    Memory that a kernel uses internally (workspaces of convolutions, buffers of threads) is not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.current = 0
        self.peak = 0
        self._alive: dict[int, weakref.ref[Any]] = {}

    def hold(self, tensors: Iterable[torch.Tensor]) -> int:
        """Count storages that existed before, such as weights; return the bytes that this added."""
        before = self.current
        for tensor in tensors:
            self._count(tensor)
        return self.current - before

    def restart_peak(self) -> None:
        """Reset the peak to the current bytes."""
        self.peak = self.current

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf)
        return result

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def gone(_: object) -> None:
            del self._alive[key]
            self.current -= size

        self._alive[key] = weakref.ref(storage, gone)
        self.current += size
        self.peak = max(self.peak, self.current)


class FusedAttention(TorchFunctionMode):
    """Inside this context, attention allocates only its result, as the fused kernels of CPUs and GPUs do.

    On the meta device PyTorch would use the plain formula, which allocates a matrix of queries by keys.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            given = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
            query, value = given["query"], given["value"]
            batch, heads, tokens, _ = query.shape
            return query.new_empty(batch, tokens, heads, value.shape[-1]).transpose(1, 2)  # the kernels' layout
        return func(*args, **(kwargs or {}))

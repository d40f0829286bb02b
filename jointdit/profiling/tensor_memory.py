"""How much memory tensors take at most: by watching what is alive, with numbers or on the meta device without any.

The estimate of activations (memory.py) runs the model's own code on the meta device under this watch: so it follows
whatever the code does, takes no memory and no arithmetic, and has no formula that could fall behind.
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
    """While it is entered: `current` and `peak` bytes of all storages that operations made and that are alive.

    What a kernel takes for itself within one operation (workspaces of convolutions, buffers of threads) is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.current = 0
        self.peak = 0
        self._alive: dict[int, weakref.ref[Any]] = {}

    def hold(self, tensors: Iterable[torch.Tensor]) -> int:
        """Count storages that were there before, such as weights; returns the bytes that this added."""
        before = self.current
        for tensor in tensors:
            self._count(tensor)
        return self.current - before

    def restart_peak(self) -> None:
        """Forget the peak so far: from now on it is that of what follows."""
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
    """While it is entered, attention makes its result alone, as the kernels do that CPUs and GPUs have.

    On the meta device PyTorch would take the plain formula, with a matrix of queries by keys.
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

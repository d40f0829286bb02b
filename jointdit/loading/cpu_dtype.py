"""The type that a device computes fast: CPUs without units for 16-bit types emulate them, up to 150 times slower.

A spec's type stays what it is; where the type of the computation differs from it, the caller says so with `slow_note`.
"""

from __future__ import annotations

from functools import cache

import torch

# What torch.cpu.get_capabilities() calls the units of each type, on x86 and on Arm.
UNITS = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16", "fp16_arith"),
}


def fast_dtype(device: torch.device | str, wanted: torch.dtype = torch.bfloat16) -> torch.dtype:
    """Return the wanted type; on a CPU that emulates it, float32."""
    is_slow = torch.device(device).type == "cpu" and wanted in UNITS and not _has_units(wanted)
    return torch.float32 if is_slow else wanted


def autocast_to_bfloat16(device: torch.device | str, enabled: bool = True) -> torch.autocast:
    """Return a context of mixed precision in bfloat16, which leaves float32 alone where bfloat16 is slow."""
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=enabled and fast_dtype(kind) == torch.bfloat16)


def slow_note(wanted: torch.dtype) -> str:
    """Return the sentence that says which type took the place of the wanted one."""
    name = str(wanted).removeprefix("torch.")
    return f"this CPU has no units for {name}: float32 is computed instead, which takes more memory"


@cache
def _has_units(dtype: torch.dtype) -> bool:
    """Whether the CPU has units for the type and oneDNN uses them; ONEDNN_MAX_CPU_ISA can forbid it."""
    capabilities = torch.cpu.get_capabilities()
    if not any(capabilities.get(name, False) for name in UNITS[dtype]) or not torch.backends.mkldnn.is_available():
        return False
    kernels = torch.ops.mkldnn
    is_used = kernels._is_mkldnn_bf16_supported if dtype == torch.bfloat16 else kernels._is_mkldnn_fp16_supported
    return bool(is_used())

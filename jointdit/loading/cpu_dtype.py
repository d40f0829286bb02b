"""Choose a dtype that the device computes fast; some CPUs emulate 16-bit types.

A CPU without hardware support for a 16-bit type is up to 150 times slower in it. The spec keeps its dtype. If the
computation uses another one, the caller reports it with `slow_note`.
"""

from __future__ import annotations

from functools import cache

import torch

# Names in torch.cpu.get_capabilities() of the hardware support for each type, on x86 and on Arm.
UNITS = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16", "fp16_arith"),
}


def fast_dtype(device: torch.device | str, wanted: torch.dtype = torch.bfloat16) -> torch.dtype:
    """Return the wanted dtype, or float32 on a CPU that emulates it."""
    is_slow = torch.device(device).type == "cpu" and wanted in UNITS and not _has_units(wanted)
    return torch.float32 if is_slow else wanted


def autocast_to_bfloat16(device: torch.device | str, enabled: bool = True) -> torch.autocast:
    """Return an autocast context for bfloat16; it is disabled on a device that computes bfloat16 slowly."""
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=enabled and fast_dtype(kind) == torch.bfloat16)


def slow_note(wanted: torch.dtype) -> str:
    """Return a message that float32 replaces the wanted dtype."""
    name = str(wanted).removeprefix("torch.")
    return f"this CPU has no hardware support for {name}: it computes in float32, which takes more memory"


@cache
def _has_units(dtype: torch.dtype) -> bool:
    """Whether the CPU supports the dtype in hardware and oneDNN uses it; ONEDNN_MAX_CPU_ISA can disable it."""
    capabilities = torch.cpu.get_capabilities()
    if not any(capabilities.get(name, False) for name in UNITS[dtype]) or not torch.backends.mkldnn.is_available():
        return False
    kernels = torch.ops.mkldnn
    is_used = kernels._is_mkldnn_bf16_supported if dtype == torch.bfloat16 else kernels._is_mkldnn_fp16_supported
    return bool(is_used())

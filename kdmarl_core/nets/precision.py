"""In which precision matrix products run.

bfloat16 halves what moves through memory, and processors that multiply in it gain more; on others
it is emulated, and a product takes several times as long as in float32.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Literal

import torch

Precision = Literal["bfloat16", "float32"]
CPU_INFO = Path("/proc/cpuinfo")
# What Linux calls it where a processor multiplies in bfloat16: two extensions of x86, one of Arm.
BFLOAT16_FLAGS = frozenset({"amx_bf16", "avx512_bf16", "bf16"})


def dtype_of(precision: Precision) -> torch.dtype:
    """The type to multiply in: bfloat16 if asked for and this processor has it, else float32."""
    return torch.bfloat16 if precision == "bfloat16" and _has_bfloat16(CPU_INFO) else torch.float32


def products_in(precision: Precision) -> torch.autocast:
    """A context in which networks multiply in `dtype_of` that precision."""
    dtype = dtype_of(precision)
    return torch.autocast("cpu", dtype, enabled=dtype != torch.float32)


@functools.cache
def _has_bfloat16(cpu_info: Path) -> bool:
    try:
        return not BFLOAT16_FLAGS.isdisjoint(cpu_info.read_text(encoding="utf-8").split())
    except OSError:
        return False  # not Linux

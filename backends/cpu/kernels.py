"""Every kernel by name: one row each. "matmul_int8:Q4_1" is the factory matmul_int8 applied to Q4_1."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edgelm.backends.cpu import team_kernels
from edgelm.backends.cpu.attention import make_attend, make_rotate
from edgelm.backends.cpu.elementwise import make_gate, merge, norm, quantize
from edgelm.backends.cpu.matmul import make_embed, make_embed_float, make_matmul_f32, make_matmul_float, make_matmul_int8

KERNELS: Mapping[str, Any] = {
    "norm": norm,
    "quantize": quantize,
    "merge": merge,
    "run": team_kernels.run,
    "serve": team_kernels.serve,
}

FACTORIES: Mapping[str, Callable[[str], Any]] = {
    "embed": make_embed,
    "embed_float": make_embed_float,
    "matmul_int8": make_matmul_int8,
    "matmul_f32": make_matmul_f32,
    "matmul_float": make_matmul_float,
    "gate": make_gate,
    "rotate": make_rotate,
    "attend": make_attend,
}


def make_kernel(name: str) -> Any:
    """The Python function of a kernel, ready for numba: int64 f(operation, job, thread, number of threads)."""
    factory, _, argument = name.partition(":")
    return FACTORIES[factory](argument) if argument else KERNELS[factory]

"""numba as a compiler: from a kernel's Python function to object code."""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
from numba import njit

from edgelm.backends.cpu.kernel_cache import Target
from edgelm.backends.cpu.kernels import make_kernel
from edgelm.backends.cpu.simd import ISA, KERNEL, Isa

_OPTIONS: dict[str, Any] = {
    "error_model": "numpy",
    "fastmath": {"contract", "reassoc", "nsz", "arcp"},
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}


def compile_to_llvm(name: str, target: Target) -> tuple[str, Any]:
    """The kernel's symbol and its optimized LLVM module."""
    token = ISA.set(Isa(target.isa))
    try:
        function: Any = njit(**_OPTIONS)(make_kernel(name))
        function.compile(KERNEL)
    finally:
        ISA.reset(token)
    result = function.overloads[KERNEL.args]
    return result.fndesc.llvm_func_name, llvm.parse_assembly(result.library.get_llvm_str())


def compile_kernel(name: str, target: Target) -> tuple[str, bytes]:
    """The kernel's symbol and its object code."""
    symbol, module = compile_to_llvm(name, target)
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=target.cpu, features=target.features, opt=3, codemodel="jitdefault", jit=True
    )
    return symbol, machine.emit_object(module)

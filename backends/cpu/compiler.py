"""numba as a compiler: from a kernel's Python function to object code, in a process of its own.

    python -m edgelm.backends.cpu.compiler ISA FOLDER KERNEL...

A separate process keeps numba's memory out of the one that holds the model, and lets kernels compile side by side.
It also keeps lowerings apart: within one process numba reuses what it has lowered before, so there is one Isa per process.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
from numba import njit

from edgelm.backends.cpu.kernel_cache import Target, host_target, kernel_path, target_machine
from edgelm.backends.cpu.kernels import make_kernel
from edgelm.backends.cpu.simd import ISA, KERNEL, Isa

_OPTIONS: dict[str, Any] = {
    "error_model": "numpy",
    "fastmath": {"contract", "reassoc", "nsz", "arcp"},
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}


def compile_to_llvm(name: str, isa: Isa) -> tuple[str, Any]:
    """The kernel's symbol and its optimized LLVM module."""
    token = ISA.set(isa)
    try:
        function: Any = njit(**_OPTIONS)(make_kernel(name))
        function.compile(KERNEL)
    finally:
        ISA.reset(token)
    result = function.overloads[KERNEL.args]
    return result.fndesc.llvm_func_name, llvm.parse_assembly(result.library.get_llvm_str())


def compile_kernel(name: str, target: Target) -> tuple[str, bytes]:
    """The kernel's symbol and its object code."""
    symbol, module = compile_to_llvm(name, Isa(target.isa))
    return symbol, target_machine(target).emit_object(module)


def write_kernel(name: str, target: Target, folder: Path) -> None:
    """Compile a kernel and put it into its file at once: symbol, digest of the code, code."""
    symbol, code = compile_kernel(name, target)
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
        try:
            file.write(f"{symbol} {hashlib.sha256(code).hexdigest()}\n".encode() + code)
            file.flush()
            Path(file.name).replace(kernel_path(folder, name))
        except OSError:
            Path(file.name).unlink()
            raise


def main(arguments: list[str]) -> None:
    """Compile the named kernels, saying each name when it is done."""
    isa, folder, *names = arguments
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    for name in names:
        write_kernel(name, host_target(isa), Path(folder))
        print(name, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

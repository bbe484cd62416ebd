"""Compiled kernels: made by numba once, kept on disk as object code, loaded by llvmlite without importing numba.

numba's own cache notices neither a change in a callee's file nor another CPU. Here the folder's name is a digest of
every source file of the kernels, the versions of numba and llvmlite, and the CPU with its features, so a stale
kernel cannot be found. One file holds one kernel: the symbol's name, a newline, and the object code.

Loading object code instead of going through numba saves its import (0.4 s) on every warm start.
"""

from __future__ import annotations

import ctypes
import hashlib
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import llvmlite.binding as llvm

from edgelm.errors import EdgeLMError

Progress = Callable[[str], None]
Signature = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64
)
"""numba's calling convention for int64 f(int64, int64, int64, int64): result and exception slots come first."""

_SOURCES = ("backends/cpu", "quant/pack_rows.py")


@dataclass(frozen=True)
class Target:
    """The processor that kernels are compiled for.

    Attributes:
        cpu: LLVM's name of it.
        features: LLVM's feature string.
        isa: name of the simd.Isa whose lowerings are used.
    """

    cpu: str
    features: str
    isa: str


def host_target(isa: str | None = None) -> Target:
    """This machine; `isa` forces one of simd.Isa, for tests of the lowerings."""
    features = llvm.get_host_cpu_features()
    if isa is None:
        has = {name for name, present in features.items() if present}
        x86 = {"avx2", "fma", "f16c"} <= has
        candidates = [
            ("avx512vnni", x86 and {"avx512vnni", "avx512vl"} <= has),
            ("avxvnni", x86 and "avxvnni" in has),
            ("avx2", x86),
            ("neon", {"neon", "dotprod"} <= has),
        ]
        isa = next((name for name, fits in candidates if fits), "generic")
    return Target(llvm.get_host_cpu_name(), features.flatten(), isa)


def source_digest(target: Target) -> str:
    """Digest of everything that decides what a kernel compiles to."""
    digest = hashlib.sha256()
    root = Path(__file__).resolve().parents[2]
    for entry in _SOURCES:
        path = root / entry
        for file in sorted(path.glob("*.py")) if path.is_dir() else [path]:
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    versions = " ".join(f"{name} {version(name)}" for name in ("numba", "llvmlite"))
    digest.update(f"{versions} {target}".encode())
    return digest.hexdigest()[:24]


class KernelCache:
    """Kernels by name, compiled when missing.

    A name is "factory" or "factory:argument:..."; kernels.py says which there are.
    """

    def __init__(self, folder: Path, target: Target | None = None, progress: Progress | None = None) -> None:
        """
        Args:
            folder: where kernels are kept; a subfolder is made for this version, CPU and source.
            target: what to compile for; this machine unless given.
            progress: called with a line before a compilation.
        """
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        self.target = target or host_target()
        self.folder = folder / source_digest(self.target)
        self._progress = progress or (lambda _line: None)
        machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=self.target.cpu, features=self.target.features, opt=3, codemodel="jitdefault", jit=True
        )
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
        self._addresses: dict[str, int] = {}

    def load(self, names: Iterable[str]) -> None:
        """Make the named kernels callable, compiling those that are not on disk."""
        wanted = sorted(set(names) - set(self._addresses))
        missing = [name for name in wanted if not self._path(name).exists()]
        if missing:
            self._compile(missing)
        for name in wanted:
            symbol, _, code = self._path(name).read_bytes().partition(b"\n")
            self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
            self._addresses[name] = -1
            self._engine.finalize_object()
            address = self._engine.get_function_address(symbol.decode())
            if not address:
                raise EdgeLMError(f"the cached kernel {self._path(name)} is damaged; delete the folder {self.folder}")
            self._addresses[name] = address

    def address(self, name: str) -> int:
        """Where the kernel is, loading it first if need be."""
        if name not in self._addresses:
            self.load([name])
        return self._addresses[name]

    def function(self, name: str) -> Callable[[int, int, int, int], int]:
        """The kernel as a Python callable; the interpreter's lock is released while it runs."""
        native = Signature(self.address(name))
        result = ctypes.c_int64()
        exception = ctypes.c_int64()

        def call(a: int, b: int, c: int, d: int) -> int:
            native(ctypes.addressof(result), ctypes.addressof(exception), a, b, c, d)
            return result.value

        return call

    def _path(self, name: str) -> Path:
        return self.folder / (name.replace(":", "-") + ".kernel")

    def _compile(self, names: list[str]) -> None:
        # numba takes long to import and is needed here only
        from edgelm.backends.cpu.compiler import compile_kernel

        self._progress(f"compiling {len(names)} kernels for this CPU ({self.target.cpu}, {self.target.isa}); this happens once")
        self.folder.mkdir(parents=True, exist_ok=True)
        for number, name in enumerate(names, 1):
            self._progress(f"compiling kernel {number} of {len(names)}: {name}")
            symbol, code = compile_kernel(name, self.target)
            with tempfile.NamedTemporaryFile(dir=self.folder, delete=False) as file:
                file.write(symbol.encode() + b"\n" + code)
            Path(file.name).replace(self._path(name))

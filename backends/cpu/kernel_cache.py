"""Compiled kernels: made by numba once, kept on disk as object code, loaded by llvmlite without importing numba.

numba's own cache notices neither a change in a callee's file nor another CPU. Here the folder's name is a digest of
every source file of the kernels, the versions of numba and llvmlite, and the CPU with its features, so a stale
kernel cannot be found. One file holds one kernel: a line with the symbol's name and the digest of the code, then the code.

Loading object code instead of going through numba saves its import (half a second, 60 MB) on every warm start.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm

from edgelm.backends.base import Progress
from edgelm.backends.source_digest import source_digest
from edgelm.errors import BackendUnavailableError

Signature = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64
)
"""numba's calling convention for int64 f(int64, int64, int64, int64): result and exception slots come first."""

_SOURCES = ("backends/cpu", "quant/pack_rows.py")
_MAX_COMPILERS = 4  # processes; each needs some 200 MB


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


def target_machine(target: Target) -> Any:
    """LLVM's code generator for a target of this machine's kind."""
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=target.cpu, features=target.features, opt=3, codemodel="jitdefault", jit=True
    )


def kernel_digest(target: Target) -> str:
    """Digest of everything that decides what a kernel compiles to."""
    versions = [f"{name} {version(name)}" for name in ("numba", "llvmlite")]
    return source_digest(_SOURCES, *versions, str(target))[:24]


def kernel_path(folder: Path, name: str) -> Path:
    """The file of one kernel."""
    return folder / (name.replace(":", "-") + ".kernel")


@dataclass(frozen=True)
class Kernel:
    """A kernel as a Python callable; the interpreter's lock is released while it runs.

    Attributes:
        native: the code.
        engine: what holds the code, which thus lives as long as anybody may call it.
    """

    native: Any
    engine: Any

    def __call__(self, a: int, b: int, c: int, d: int) -> int:
        result, exception = ctypes.c_int64(), ctypes.c_int64()
        self.native(ctypes.addressof(result), ctypes.addressof(exception), a, b, c, d)
        return result.value


class KernelCache:
    """Kernels by name, compiled when missing. kernels.py says which names there are."""

    def __init__(self, folder: Path, target: Target | None = None, progress: Progress | None = None) -> None:
        """
        Args:
            folder: where kernels are kept; a subfolder is made for this version, CPU and source.
            target: what to compile for; this machine unless given.
            progress: called with a line before a compilation, and after each kernel.
        """
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        self.target = target or host_target()
        self.folder = folder / kernel_digest(self.target)
        self._progress = progress or (lambda _line: None)
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target_machine(self.target))
        self._addresses: dict[str, int] = {}

    def load(self, names: Iterable[str]) -> None:
        """Make the named kernels callable, compiling those that are missing or damaged on disk.

        Raises:
            BackendUnavailableError: they cannot be compiled or stored here.
        """
        wanted = sorted(set(names) - set(self._addresses))
        found = {name: self._read(name) for name in wanted}
        missing = [name for name, kernel in found.items() if kernel is None]
        if missing:
            self._compile(missing)
            found |= {name: self._read(name) for name in missing}
        for name, kernel in found.items():
            if kernel is None:
                raise BackendUnavailableError(f"kernel {name} was compiled but cannot be read back from {self.folder}; check that folder")
            symbol, code = kernel
            self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
            self._engine.finalize_object()
            self._addresses[name] = self._engine.get_function_address(symbol)

    def address(self, name: str) -> int:
        """Where the kernel is, loading it first if need be."""
        if name not in self._addresses:
            self.load([name])
        return self._addresses[name]

    def function(self, name: str) -> Kernel:
        """The kernel as a Python callable."""
        return Kernel(Signature(self.address(name)), self._engine)

    def _read(self, name: str) -> tuple[str, bytes] | None:
        """Symbol and code of a kernel on disk, or None where it is missing or damaged."""
        try:
            header, _, code = kernel_path(self.folder, name).read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BackendUnavailableError(
                f"compiled kernels cannot be read from {self.folder}: {error.strerror}; make it readable"
            ) from error
        symbol, _, digest = header.decode("ascii", "replace").partition(" ")
        return (symbol, code) if hashlib.sha256(code).hexdigest() == digest else None

    def _compile(self, names: list[str]) -> None:
        """Compile kernels in other processes, one for each core."""
        n_processes = min(_MAX_COMPILERS, len(names), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
        self._progress(
            f"compiling {len(names)} kernels for this CPU ({self.target.cpu}, {self.target.isa}); this takes some seconds and happens once"
        )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BackendUnavailableError(
                f"compiled kernels cannot be kept in {self.folder}: {error.strerror}; make it writable"
            ) from error
        # -P: nothing is imported from the folder that happens to be the current one
        command = [sys.executable, "-P", "-m", "edgelm.backends.cpu.compiler", self.target.isa, str(self.folder)]
        reading, writing = os.pipe()
        with tempfile.TemporaryFile("w+") as errors:
            processes = [subprocess.Popen([*command, *names[i::n_processes]], stdout=writing, stderr=errors) for i in range(n_processes)]
            os.close(writing)
            with os.fdopen(reading) as finished:
                for line in finished:
                    self._progress(f"compiled {line.strip()}")
            codes = [process.wait() for process in processes]
            if any(codes):
                errors.seek(0)
                last = errors.read().strip().splitlines()[-1:] or ["the compiler died"]
                raise BackendUnavailableError(f"a kernel could not be compiled into {self.folder}: {last[0]}")

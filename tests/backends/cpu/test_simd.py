"""Every lowering: the ones this CPU runs give the same numbers, the others the instructions they are there for."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgelm.backends.cpu.engine import kernel_folder
from edgelm.backends.cpu.kernel_cache import KernelCache, host_target
from edgelm.backends.cpu.records import JOB, JOB_SLOTS, MATMUL, OP, SLOTS
from edgelm.quant.blocks import FORMATS
from edgelm.quant.pack_rows import LAYOUTS, pack

N_IN, N_OUT, N_ROWS = 512, 24, 5

# prints the assembly of a kernel lowered for an instruction set, for another processor than this one;
# numba is kept from making code for this processor, which may not know the instructions
_ASSEMBLE = """
import re, sys
import llvmlite.binding as llvm
from numba.core.codegen import JITCodeLibrary
from numba.core.cpu import CPUContext
CPUContext.get_executable = lambda self, library, fndesc, env: (library.finalize(), object().__sizeof__)[1]
JITCodeLibrary._finalize_specific = lambda self: None
from edgelm.backends.cpu.compiler import compile_to_llvm
from edgelm.backends.cpu.simd import Isa
llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()
isa, kernel, triple, cpu = sys.argv[1:]
text = str(compile_to_llvm(kernel, Isa(isa))[1])
text = re.sub(r"target (triple|datalayout) = .*|\\"target-(cpu|features)\\"=\\"[^\\"]*\\"", "", text)
machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, opt=3)
module = llvm.parse_assembly(text)
module.triple, module.data_layout = triple, str(machine.target_data)
print(machine.emit_assembly(module))
"""


@pytest.mark.parametrize(
    ("isa", "triple", "cpu", "kernel", "instruction"),
    [
        ("avx2", "x86_64-unknown-linux-gnu", "haswell", "matmul_int8:Q4_0", "vpmaddubsw"),
        ("avx2", "x86_64-unknown-linux-gnu", "haswell", "matmul_int8:IQ4_NL", "vpshufb"),
        ("avxvnni", "x86_64-unknown-linux-gnu", "alderlake", "matmul_int8:Q4_0", "vpdpbusd"),
        ("avx512vnni", "x86_64-unknown-linux-gnu", "icelake-server", "matmul_int8:Q8_0", "vpdpbusd"),
        ("neon", "aarch64-unknown-linux-gnu", "cortex-a76", "matmul_int8:Q4_0", "sdot"),
        ("neon", "aarch64-unknown-linux-gnu", "cortex-a76", "matmul_int8:IQ4_NL", "tbl"),
        ("neon", "aarch64-unknown-linux-gnu", "cortex-a76", "run", "yield"),
    ],
)
def test_each_instruction_set_gets_its_instruction(isa: str, triple: str, cpu: str, kernel: str, instruction: str) -> None:
    command = [sys.executable, "-c", _ASSEMBLE, isa, kernel, triple, cpu]
    assembly = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.search(rf"^\s+({{vex}}\s+)?{instruction}\b", assembly, re.MULTILINE)


def matmul(cache: KernelCache, format_name: str) -> np.ndarray:
    """y = W x by the int8 kernel, for one row and for several: float32 [1 + N_ROWS, N_OUT]."""
    rng = np.random.default_rng(3)
    block_format = FORMATS[format_name]
    weights = pack(block_format, block_format.quantize(rng.standard_normal((N_OUT, N_IN)).astype(np.float32)), N_OUT, N_IN)
    act = np.zeros((N_ROWS + 3, N_IN + 3 * N_IN // 8), np.uint8)
    act[:, :N_IN] = rng.integers(-127, 128, (N_ROWS + 3, N_IN)).astype(np.int8).view(np.uint8)
    scales = act[:, N_IN:].view(np.float32).reshape(len(act), 3, -1)
    codes = act[:, :N_IN].view(np.int8).reshape(len(act), -1, 32).astype(np.float32)
    scales[:, 0] = rng.random(scales[:, 0].shape, np.float32)
    scales[:, 1], scales[:, 2] = scales[:, 0] * codes.sum(2), scales[:, 0] * codes[..., :16].sum(2)
    out = np.zeros((N_ROWS + 3, N_OUT), np.float32)
    op, job = np.zeros(SLOTS, np.int64), np.zeros(JOB_SLOTS, np.int64)
    slots = {OP.rows: JOB.n_tokens, MATMUL.weights: weights.ctypes.data, MATMUL.n_runs: N_OUT // 8, MATMUL.n_columns: N_IN}
    slots |= {
        MATMUL.act: act.ctypes.data,
        MATMUL.act_stride: act.strides[0],
        MATMUL.out: out.ctypes.data,
        MATMUL.out_stride: out.strides[0],
    }
    for offset, value in slots.items():
        op[offset // 8] = value
    results = []
    for n_rows in (1, N_ROWS):
        job[JOB.n_tokens // 8] = n_rows
        cache.function(f"matmul_int8:{format_name}")(op.ctypes.data, job.ctypes.data, 0, 1)
        results.append(out[:n_rows].copy())
    exact = (codes * scales[:, 0, :, None]).reshape(len(act), N_IN) @ _dequantized(block_format, weights).T
    np.testing.assert_allclose(results[1], exact[:N_ROWS], atol=2e-4 * np.abs(exact).max())
    return np.concatenate(results)


def _dequantized(block_format: object, packed: np.ndarray) -> np.ndarray:
    from edgelm.quant.blocks import BlockFormat
    from edgelm.quant.pack_rows import unpack

    assert isinstance(block_format, BlockFormat)
    return block_format.dequantize(unpack(block_format, packed, N_OUT, N_IN)).reshape(N_OUT, N_IN)


def test_the_generic_lowering_equals_the_one_for_this_cpu(tmp_path: Path) -> None:
    names = [f"matmul_int8:{name}" for name in LAYOUTS]
    native, generic = KernelCache(kernel_folder()), KernelCache(tmp_path, host_target("generic"))
    assert native.folder != generic.folder
    native.load(names)
    generic.load(names)
    for name in LAYOUTS:
        found, wanted = matmul(generic, name), matmul(native, name)
        np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max(), err_msg=name)

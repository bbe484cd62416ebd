"""The two loops that find a processor's limits, written in LLVM directly: they compile in milliseconds and hold exactly these instructions.

Reading: several streams through memory at once, as decoding kernels read weights, because they keep a core's prefetchers busier than one.
Multiplying: sums over operands that stay in registers, so that nothing but the throughput of the instructions counts.

Both are called as f(address, n): the interpreter's lock is released meanwhile.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

from edgelm.backends.cpu.kernel_cache import Target, host_target, target_machine

N_STREAMS = 4
READ_STEP = N_STREAMS * 128
"""Bytes that one round of the reading loop takes, an equal part from each stream."""

OPERAND_BYTES = 2048
"""Of the memory that a multiplying loop takes its operands from and leaves its sums in."""

Function = Callable[[int, int], int]
"""f(address, n): reads n bytes, a multiple of READ_STEP; or multiplies n rounds."""

Step = Callable[[ir.IRBuilder, list[Any], list[Any], Any], tuple[list[Any], Any]]
"""One round: new sums and new activations out of (builder, sums, codes, activations)."""

_i8, _i16, _i32, _i64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))


@dataclass(frozen=True)
class Instruction:
    """A way to multiply int8 by int8 and add to int32.

    Attributes:
        name: as the processor's maker calls it, and the width of its registers.
        needs: sets of LLVM's feature names, one of which suffices.
        n_bytes: of a vector of codes, and of activations.
        n_codes, n_sums: such vectors, and vectors of n_bytes / 4 sums, that a round uses.
        macs: multiplications of one round.
        step: builds a round.
    """

    name: str
    needs: tuple[frozenset[str], ...]
    n_bytes: int
    n_codes: int
    n_sums: int
    macs: int
    step: Step


@dataclass(frozen=True)
class Compiled:
    """Loops as callables; `engine` holds their code."""

    read: Function
    multiply: tuple[tuple[Instruction, Function], ...]
    engine: Any


def available(target: Target) -> tuple[Instruction, ...]:
    """The rows of INSTRUCTIONS that the target has; what LLVM makes of plain multiplications where it has none."""
    features = frozenset(part[1:] for part in target.features.split(",") if part.startswith("+"))
    return tuple(row for row in INSTRUCTIONS if any(needed <= features for needed in row.needs)) or (PLAIN,)


def compile_loops(rows: Sequence[Instruction] | None = None) -> Compiled:
    """Compile the loops for this machine, with all the instructions that it has unless some are given."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = host_target()
    rows = available(target) if rows is None else rows
    machine = target_machine(target)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(str(build_module(rows))), machine)
    engine.finalize_object()
    prototype = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
    functions = [prototype(engine.get_function_address(name)) for name in ("read", *(f"multiply{i}" for i in range(len(rows))))]
    return Compiled(functions[0], tuple(zip(rows, functions[1:], strict=True)), engine)


def build_module(rows: Iterable[Instruction]) -> ir.Module:
    """LLVM's text of the loops: @read, and @multiply0, @multiply1, ... for each row."""
    module = ir.Module()
    _build_read(module)
    for i, row in enumerate(rows):
        _build_multiply(module, f"multiply{i}", row)
    return module


# ---- one loop: for (i = 0; i < n; i += step)
def _loop(module: ir.Module, name: str, body: Callable[[ir.IRBuilder, Any, Any], Any], step: int) -> None:
    """Define i64 name(i64 address, i64 n). body(builder, address, n) gives (start values, round, end):
    round(builder, i, values) -> values, end(builder, values) -> result.
    """
    function = ir.Function(module, ir.FunctionType(_i64, [_i64, _i64]), name)
    entry, around, leave = (function.append_basic_block(label) for label in ("entry", "around", "leave"))
    address, n = function.args
    builder = ir.IRBuilder(entry)
    starts, one_round, end = body(builder, address, n)
    builder.branch(around)
    builder.position_at_end(around)
    i = builder.phi(_i64)
    values = [builder.phi(start.type) for start in starts]
    following = one_round(builder, i, values)
    i_next = builder.add(i, ir.Constant(_i64, step))
    builder.cbranch(builder.icmp_signed("<", i_next, n), around, leave)
    for phi, start, value in zip([i, *values], [ir.Constant(_i64, 0), *starts], [i_next, *following], strict=True):
        phi.add_incoming(start, entry)
        phi.add_incoming(value, around)
    builder.position_at_end(leave)
    builder.ret(end(builder, following))


def _build_read(module: ir.Module) -> None:
    vector, n_loads = ir.VectorType(_i64, 4), READ_STEP // N_STREAMS // 32

    def body(builder: ir.IRBuilder, address: Any, n: Any) -> Any:
        part = builder.udiv(n, ir.Constant(_i64, N_STREAMS))
        starts = [builder.add(address, builder.mul(part, ir.Constant(_i64, stream))) for stream in range(N_STREAMS)]

        def one_round(builder: ir.IRBuilder, i: Any, sums: list[Any]) -> list[Any]:
            offset = builder.udiv(i, ir.Constant(_i64, N_STREAMS))
            rows = [[_load(builder, builder.add(start, offset), 32 * k, vector) for start in starts] for k in range(n_loads)]
            return [reduce(builder.xor, column, total) for total, column in zip(sums, zip(*rows, strict=True), strict=True)]

        def end(builder: ir.IRBuilder, sums: list[Any]) -> Any:
            total = reduce(builder.xor, sums)
            return reduce(builder.xor, [builder.extract_element(total, ir.Constant(_i32, lane)) for lane in range(4)])

        return [ir.Constant(vector, [0] * 4)] * N_STREAMS, one_round, end

    _loop(module, "read", body, READ_STEP)


def _build_multiply(module: ir.Module, name: str, row: Instruction) -> None:
    codes_type, sums_type = ir.VectorType(_i8, row.n_bytes), ir.VectorType(_i32, row.n_bytes // 4)

    def body(builder: ir.IRBuilder, address: Any, _n: Any) -> Any:
        # every operand comes from memory, once, so that LLVM can neither compute it beforehand nor take two sums for the same
        places = [row.n_bytes * k for k in range(row.n_codes + row.n_sums + 1)]
        codes = [_load(builder, address, place, codes_type) for place in places[: row.n_codes]]
        sums = [_load(builder, address, place, sums_type) for place in places[row.n_codes : -1]]
        activations = _load(builder, address, places[-1], codes_type)

        def one_round(builder: ir.IRBuilder, _i: Any, values: list[Any]) -> list[Any]:
            totals, changed = row.step(builder, values[:-1], codes, values[-1])
            return [*totals, changed]

        def end(builder: ir.IRBuilder, values: list[Any]) -> Any:
            for place, total in zip(places, values[:-1], strict=False):
                _store(builder, address, place, total)
            return ir.Constant(_i64, 0)

        return [*sums, activations], one_round, end

    _loop(module, name, body, 1)


# ---- rounds
def _dots(name: str) -> Step:
    """sum += four (or more) products, in one instruction; every sum has its own chain."""

    def step(builder: ir.IRBuilder, sums: list[Any], codes: list[Any], x: Any) -> tuple[list[Any], Any]:
        return [_call(builder, name, total.type, [total, codes[k % len(codes)], x]) for k, total in enumerate(sums)], x

    return step


def _pairs(pair_name: str, widen_name: str) -> Step:
    """Products of neighbours are summed into int16, those of eight vectors of 4-bit codes before they widen to int32."""

    def step(builder: ir.IRBuilder, sums: list[Any], codes: list[Any], x: Any) -> tuple[list[Any], Any]:
        pairs = ir.VectorType(_i16, x.type.count // 2)
        partial = _add_tree(builder, [_call(builder, pair_name, pairs, [code, x]) for code in codes])
        ones = ir.Constant(pairs, [1] * pairs.count)
        wide = _call(builder, widen_name, sums[0].type, [partial, ones])
        return [builder.add(sums[0], wide)], _others(builder, x, codes)

    return step


def _others(builder: ir.IRBuilder, x: Any, codes: list[Any]) -> Any:
    """Other activations for the next round, or LLVM would multiply only once."""
    return builder.add(x, codes[0])


def _halves(builder: ir.IRBuilder, sums: list[Any], codes: list[Any], x: Any) -> tuple[list[Any], Any]:
    """smlal: products of each half are added to int16, those of eight vectors of 4-bit codes before they widen to int32."""
    total = sums[0]
    for start in (0, 8):
        wide_x = _sext(builder, _slice(builder, x, start, 8), _i16)
        partial = _add_tree(builder, [builder.mul(_sext(builder, _slice(builder, code, start, 8), _i16), wide_x) for code in codes])
        total = builder.add(total, _call(builder, "llvm.aarch64.neon.saddlp.v4i32.v8i16", total.type, [partial]))
    return [total], _others(builder, x, codes)


def _plain(builder: ir.IRBuilder, sums: list[Any], codes: list[Any], x: Any) -> tuple[list[Any], Any]:
    lanes = x.type.count // 4
    totals = []
    for k, total in enumerate(sums):
        part = 4 * (k % 4)
        total = builder.add(
            total,
            builder.mul(
                _sext(builder, _slice(builder, codes[k // 4], part, lanes), _i32), _sext(builder, _slice(builder, x, part, lanes), _i32)
            ),
        )
        totals.append(total)
    return totals, _others(builder, x, codes)


def _needs(*sets: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(names.split()) for names in sets)


# n_sums: enough chains for four instructions at once, each of which takes three cycles, or two that take five
INSTRUCTIONS = (
    Instruction("vpdpbusd, 512 bits", _needs("avx512vnni"), 64, 2, 12, 64 * 12, _dots("llvm.x86.avx512.vpdpbusd.512")),
    Instruction("vpdpbusd, 256 bits", _needs("avxvnni", "avx512vnni avx512vl"), 32, 2, 12, 32 * 12, _dots("llvm.x86.avx512.vpdpbusd.256")),
    Instruction(
        "vpmaddubsw, 512 bits",
        _needs("avx512bw"),
        64,
        8,
        1,
        64 * 8,
        _pairs("llvm.x86.avx512.pmaddubs.w.512", "llvm.x86.avx512.pmaddw.d.512"),
    ),
    Instruction("vpmaddubsw, 256 bits", _needs("avx2"), 32, 8, 1, 32 * 8, _pairs("llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd")),
    Instruction(
        "pmaddubsw, 128 bits", _needs("ssse3"), 16, 8, 1, 16 * 8, _pairs("llvm.x86.ssse3.pmadd.ub.sw.128", "llvm.x86.sse2.pmadd.wd")
    ),
    Instruction("smmla, 128 bits", _needs("neon i8mm"), 16, 2, 12, 32 * 12, _dots("llvm.aarch64.neon.smmla.v4i32.v16i8")),
    Instruction("sdot, 128 bits", _needs("neon dotprod"), 16, 2, 12, 16 * 12, _dots("llvm.aarch64.neon.sdot.v4i32.v16i8")),
    Instruction("smlal, 128 bits", _needs("neon"), 16, 8, 1, 16 * 8, _halves),
)
PLAIN = Instruction("multiplications as LLVM compiles them", (), 16, 2, 8, 4 * 8, _plain)


# ---- LLVM in a word
def _call(builder: ir.IRBuilder, name: str, result: ir.Type, arguments: list[Any]) -> Any:
    function = builder.module.globals.get(name)
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(result, [argument.type for argument in arguments]), name)
    return builder.call(function, arguments)


def _place(builder: ir.IRBuilder, address: Any, offset: int, pointee: ir.Type) -> Any:
    return builder.inttoptr(builder.add(address, ir.Constant(_i64, offset)), pointee.as_pointer())


def _load(builder: ir.IRBuilder, address: Any, offset: int, loaded: ir.Type) -> Any:
    return builder.load(_place(builder, address, offset, loaded), align=16)


def _store(builder: ir.IRBuilder, address: Any, offset: int, value: Any) -> None:
    builder.store(value, _place(builder, address, offset, value.type), align=16)


def _add_tree(builder: ir.IRBuilder, values: list[Any]) -> Any:
    while len(values) > 1:
        values = [builder.add(a, b) for a, b in zip(values[::2], values[1::2], strict=True)]
    return values[0]


def _slice(builder: ir.IRBuilder, vector: Any, start: int, count: int) -> Any:
    return builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(_i32, count), list(range(start, start + count))))


def _sext(builder: ir.IRBuilder, vector: Any, element: ir.Type) -> Any:
    return builder.sext(vector, ir.VectorType(element, vector.type.count))

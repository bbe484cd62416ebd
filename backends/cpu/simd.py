"""Vector types and instructions for kernels compiled by numba.

A numba type whose data model is an LLVM vector lets `@intrinsic` functions compose like C intrinsics:
`fma(w, splat(x), acc)` compiles to one vfmadd. Memory is addressed by plain integers (`intp`), so kernels need no
array types, compile fast and carry no reference counts.

Names: F32 is 8 floats, I32 is 8 int32, U8 is 32 bytes seen as 8 lanes of 4 bytes. A lane is one output row. Each has a form twice as
wide, made by `join_f32` and `join_u8`, for CPUs with 512-bit registers; what kernels of several rows need takes either.
Everything is written in target-neutral LLVM; only the integer dot products and the table lookup have one lowering
per instruction set (`Isa`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from enum import Enum
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model


class Isa(Enum):
    """Instruction sets that have a lowering of their own."""

    AVX2 = "avx2"
    AVXVNNI = "avxvnni"
    AVX512VNNI = "avx512vnni"
    NEON = "neon"
    GENERIC = "generic"


ISA: ContextVar[Isa] = ContextVar("ISA", default=Isa.GENERIC)
"""The instruction set that kernels are being compiled for; set around each compilation."""

LANES = 8

_i8, _i16, _i32, _i64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_f16, _f32 = ir.HalfType(), ir.FloatType()
_fast = ("contract", "nsz")


class Vector(types.Type):
    """A numba type held in a vector register."""

    def __init__(self, name: str, element: ir.Type, count: int) -> None:
        self.llvm = ir.VectorType(element, count)
        self.count = count
        super().__init__(name=name)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, numba_type: Vector) -> None:
        super().__init__(manager, numba_type, numba_type.llvm)


F32 = Vector("F32x8", _f32, 8)
I32 = Vector("I32x8", _i32, 8)
U8 = Vector("U8x32", _i8, 32)
_WIDE = {F32: Vector("F32x16", _f32, 16), I32: Vector("I32x16", _i32, 16), U8: Vector("U8x64", _i8, 64)}
_v16i16 = ir.VectorType(_i16, 16)

Lower = Callable[[ir.IRBuilder, Sequence[Any]], Any]


def _instruction(result: Any, *arguments: Any, name: str, doc: str) -> Callable[[Lower], Any]:
    """Make an intrinsic out of `lower(builder, arguments)`: it has one fixed signature, and that of wide vectors where it is given one."""

    def decorate(lower: Lower) -> Any:
        narrow = result(*arguments)
        wide = _WIDE.get(result, result)(*(_WIDE.get(argument, argument) for argument in arguments))

        def choose(*given: Any) -> Any:
            return wide if any(argument in _WIDE.values() for argument in given) else narrow

        def codegen(context: Any, builder: ir.IRBuilder, _signature: Any, args: Sequence[Any]) -> Any:
            value = lower(builder, args)
            return context.get_dummy_value() if result is types.void else value

        names = ", ".join(f"a{i}" for i in range(len(arguments)))
        scope: dict[str, Any] = {"choose": choose, "codegen": codegen}
        # numba reads an intrinsic's arity from its Python signature
        exec(f"def {name}(typing_context{', ' if names else ''}{names}): return choose({names}), codegen", scope)
        function = scope[name]
        function.__doc__ = doc
        function.__module__ = __name__
        return intrinsic(function)

    return decorate


def _constant(vector: ir.VectorType, value: float) -> ir.Constant:
    return ir.Constant(vector, [value] * vector.count)


def _broadcast(builder: ir.IRBuilder, scalar: Any, count: int) -> Any:
    vector = ir.VectorType(scalar.type, count)
    single = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(_i32, 0))
    return builder.shuffle_vector(single, single, ir.Constant(ir.VectorType(_i32, count), [0] * count))


def _call(builder: ir.IRBuilder, name: str, result: ir.Type, args: Sequence[Any]) -> Any:
    function_type = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), args)


def _load(builder: ir.IRBuilder, address: Any, loaded: ir.Type, align: int = 1) -> Any:
    value = builder.load(builder.inttoptr(address, loaded.as_pointer()))
    value.align = align
    return value


def _store(builder: ir.IRBuilder, address: Any, value: Any, align: int = 1) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer())).align = align


def _make_load(name: str, doc: str, result: Any, stored: ir.Type, widen: Callable[[ir.IRBuilder, Any], Any]) -> Any:
    return _instruction(result, types.intp, name=name, doc=doc)(lambda b, a: widen(b, _load(b, a[0], stored)))


def _vec(element: ir.Type) -> ir.VectorType:
    return ir.VectorType(element, LANES)


def _bf16_to_f32(builder: ir.IRBuilder, value: Any) -> Any:
    return builder.bitcast(builder.shl(builder.zext(value, _vec(_i32)), _constant(_vec(_i32), 16)), F32.llvm)


# ---- memory: 8 values, or one
load_f32 = _make_load("load_f32", "8 float32.", F32, F32.llvm, lambda _b, v: v)
load_f16 = _make_load("load_f16", "8 float16, widened.", F32, _vec(_f16), lambda b, v: b.fpext(v, F32.llvm))
load_bf16 = _make_load("load_bf16", "8 bfloat16, widened.", F32, _vec(_i16), _bf16_to_f32)
load_u8_f32 = _make_load("load_u8_f32", "8 uint8 as floats.", F32, _vec(_i8), lambda b, v: b.uitofp(v, F32.llvm))
load_i8_f32 = _make_load("load_i8_f32", "8 int8 as floats.", F32, _vec(_i8), lambda b, v: b.sitofp(v, F32.llvm))
load_u8 = _make_load("load_u8", "32 bytes.", U8, U8.llvm, lambda _b, v: v)
read_f32 = _make_load("read_f32", "One float32.", types.float32, _f32, lambda _b, v: v)
read_i32 = _make_load("read_i32", "One int32.", types.int64, _i32, lambda b, v: b.sext(v, _i64))
read_i64 = _make_load("read_i64", "One int64.", types.int64, _i64, lambda _b, v: v)
read_f64 = _make_load("read_f64", "One float64, as float32.", types.float32, ir.DoubleType(), lambda b, v: b.fptrunc(v, _f32))

store_f32 = _instruction(types.void, types.intp, F32, name="store_f32", doc="Store 8 float32.")(lambda b, a: _store(b, a[0], a[1]))
write_f32 = _instruction(types.void, types.intp, types.float32, name="write_f32", doc="Store one float32.")(
    lambda b, a: _store(b, a[0], a[1])
)
store_f16 = _instruction(types.void, types.intp, F32, name="store_f16", doc="Round 8 floats to float16 and store them.")(
    lambda b, a: _store(b, a[0], b.fptrunc(a[1], _vec(_f16)))
)
write_f16 = _instruction(types.void, types.intp, types.float32, name="write_f16", doc="Round a float to float16 and store it.")(
    lambda b, a: _store(b, a[0], b.fptrunc(a[1], _f16))
)
store_i8 = _instruction(types.void, types.intp, I32, name="store_i8", doc="Truncate 8 int32 to int8 and store them.")(
    lambda b, a: _store(b, a[0], b.trunc(a[1], _vec(_i8)))
)


def _prefetch(builder: ir.IRBuilder, args: Sequence[Any]) -> None:
    pointer = builder.inttoptr(args[0], _i8.as_pointer())
    read, keep, data = (ir.Constant(_i32, value) for value in (0, 2, 1))
    _call(builder, "llvm.prefetch.p0", ir.VoidType(), [pointer, read, keep, data])


prefetch = _instruction(types.void, types.intp, name="prefetch", doc="Begin to fetch a cache line into L2; any address will do.")(_prefetch)

# ---- float arithmetic
zero = _instruction(F32, name="zero", doc="8 zeros.")(lambda _b, _a: _constant(F32.llvm, 0.0))
splat = _instruction(F32, types.float32, name="splat", doc="One float in all lanes.")(lambda b, a: _broadcast(b, a[0], LANES))
splat_like = _instruction(F32, F32, types.float32, name="splat_like", doc="One float in all lanes of a vector like the first.")(
    lambda b, a: _broadcast(b, a[1], a[0].type.count)
)
add = _instruction(F32, F32, F32, name="add", doc="a + b.")(lambda b, a: b.fadd(a[0], a[1], flags=_fast))
sub = _instruction(F32, F32, F32, name="sub", doc="a - b.")(lambda b, a: b.fsub(a[0], a[1], flags=_fast))
mul = _instruction(F32, F32, F32, name="mul", doc="a b.")(lambda b, a: b.fmul(a[0], a[1], flags=_fast))
div = _instruction(F32, F32, F32, name="div", doc="a / b.")(lambda b, a: b.fdiv(a[0], a[1], flags=_fast))
fma = _instruction(F32, F32, F32, F32, name="fma", doc="a b + c, rounded once.")(
    lambda b, a: _call(b, f"llvm.fma.v{a[0].type.count}f32", a[0].type, a)
)
maximum = _instruction(F32, F32, F32, name="maximum", doc="The larger of a and b.")(
    lambda b, a: b.select(b.fcmp_ordered(">", a[0], a[1]), a[0], a[1])
)
minimum = _instruction(F32, F32, F32, name="minimum", doc="The smaller of a and b.")(
    lambda b, a: b.select(b.fcmp_ordered("<", a[0], a[1]), a[0], a[1])
)
absolute = _instruction(F32, F32, name="absolute", doc="|a|.")(lambda b, a: _call(b, "llvm.fabs.v8f32", F32.llvm, a))
to_f32 = _instruction(F32, I32, name="to_f32", doc="int32 to float32.")(lambda b, a: b.sitofp(a[0], ir.VectorType(_f32, a[0].type.count)))
round_i32 = _instruction(I32, F32, name="round_i32", doc="Nearest int32, ties to even.")(
    lambda b, a: b.fptosi(_call(b, "llvm.rint.v8f32", F32.llvm, a), I32.llvm)
)
exponent = _instruction(F32, I32, name="exponent", doc="2**n for n in [-126, 127].")(
    lambda b, a: b.bitcast(b.shl(b.add(a[0], _constant(I32.llvm, 127)), _constant(I32.llvm, 23)), F32.llvm)
)
add_i32 = _instruction(I32, I32, I32, name="add_i32", doc="a + b.")(lambda b, a: b.add(a[0], a[1]))


def _tree(builder: ir.IRBuilder, vector: Any, join: Callable[[Any, Any], Any]) -> Any:
    """Fold 8 lanes to one by halves."""
    width = LANES
    while width > 1:
        width //= 2
        index = [i + width if i < width else i for i in range(LANES)]
        vector = join(vector, builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(_i32, LANES), index)))
    return builder.extract_element(vector, ir.Constant(_i32, 0))


lane_sum = _instruction(types.float32, F32, name="lane_sum", doc="Sum of the 8 lanes.")(
    lambda b, a: _tree(b, a[0], lambda x, y: b.fadd(x, y))
)
lane_max = _instruction(types.float32, F32, name="lane_max", doc="Largest of the 8 lanes.")(
    lambda b, a: _tree(b, a[0], lambda x, y: b.select(b.fcmp_ordered(">", x, y), x, y))
)
lane_sum_i32 = _instruction(types.int64, I32, name="lane_sum_i32", doc="Sum of the 8 lanes.")(
    lambda b, a: b.sext(_tree(b, a[0], b.add), _i64)
)
lane = _instruction(types.float32, F32, types.intp, name="lane", doc="The lane with a number known at run time.")(
    lambda b, a: b.extract_element(a[0], b.trunc(a[1], _i32))
)


@njit(forceinline=True, error_model="numpy")
def exp(x):
    """e**x to 2 ulp for x in [-87, 88], clamped outside. Range reduction by powers of two, then Cephes' polynomial."""
    x = minimum(maximum(x, splat(np.float32(-87.0))), splat(np.float32(88.0)))
    n = round_i32(mul(x, splat(np.float32(1.4426950408889634))))
    r = fma(to_f32(n), splat(np.float32(-0.693359375)), x)
    r = fma(to_f32(n), splat(np.float32(2.12194440e-4)), r)
    p = splat(np.float32(1.9875691500e-4))
    p = fma(p, r, splat(np.float32(1.3981999507e-3)))
    p = fma(p, r, splat(np.float32(8.3334519073e-3)))
    p = fma(p, r, splat(np.float32(4.1665795894e-2)))
    p = fma(p, r, splat(np.float32(1.6666665459e-1)))
    p = fma(p, r, splat(np.float32(5.0000001201e-1)))
    p = fma(p, mul(r, r), add(r, splat(np.float32(1.0))))
    return mul(p, exponent(n))


# ---- bytes: codes of quantized weights
low_nibbles = _instruction(U8, U8, name="low_nibbles", doc="v & 15 in each byte.")(lambda b, a: b.and_(a[0], _constant(U8.llvm, 15)))
high_nibbles = _instruction(U8, U8, name="high_nibbles", doc="v >> 4 in each byte.")(lambda b, a: b.lshr(a[0], _constant(U8.llvm, 4)))


def _bits(name: str, width: int, position: int) -> Any:
    def lower(builder: ir.IRBuilder, args: Sequence[Any]) -> Any:
        codes, plane, k = args
        k8 = _broadcast(builder, builder.trunc(k, _i8), 32)
        picked = builder.and_(builder.lshr(plane, k8), _constant(U8.llvm, (1 << width) - 1))
        return builder.or_(codes, builder.shl(picked, _constant(U8.llvm, position)))

    return _instruction(U8, U8, U8, types.intp, name=name, doc=f"codes | (plane >> k & {(1 << width) - 1}) << {position}.")(lower)


with_bit_4 = _bits("with_bit_4", 1, 4)
with_bits_45 = _bits("with_bits_45", 2, 4)


def _lookup(builder: ir.IRBuilder, args: Sequence[Any]) -> Any:
    """IQ4_NL's 16 values by code: one byte shuffle per 16 lanes where the target has it."""
    codes = args[0]
    values = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]
    isa = ISA.get()
    if isa in (Isa.AVX2, Isa.AVXVNNI, Isa.AVX512VNNI):
        return _call(builder, "llvm.x86.avx2.pshuf.b", U8.llvm, [ir.Constant(U8.llvm, values * 2), codes])
    if isa is Isa.NEON:
        table = ir.Constant(ir.VectorType(_i8, 16), values)
        halves = [_call(builder, "llvm.aarch64.neon.tbl1.v16i8", table.type, [table, half]) for half in _split(builder, codes)]
        return _concat(builder, *halves)
    result: Any = _constant(U8.llvm, values[0])
    for code in range(1, 16):
        result = builder.select(builder.icmp_unsigned("==", codes, _constant(U8.llvm, code)), _constant(U8.llvm, values[code]), result)
    return result


iq4_values = _instruction(U8, U8, name="iq4_values", doc="IQ4_NL's signed values of 32 codes.")(_lookup)


def _split(builder: ir.IRBuilder, vector: Any) -> tuple[Any, Any]:
    half = vector.type.count // 2
    index = ir.VectorType(_i32, half)
    return tuple(builder.shuffle_vector(vector, vector, ir.Constant(index, list(range(start, start + half)))) for start in (0, half))


def _concat(builder: ir.IRBuilder, low: Any, high: Any) -> Any:
    count = 2 * low.type.count
    return builder.shuffle_vector(low, high, ir.Constant(ir.VectorType(_i32, count), list(range(count))))


def _half(name: str, which: int, doc: str) -> Any:
    """From 16 floats to 8: not one of the instructions of either width."""

    def typing(_context: Any, _vector: Any) -> Any:
        return F32(_WIDE[F32]), lambda _context, builder, _signature, args: _split(builder, args[0])[which]

    typing.__name__, typing.__doc__ = name, doc
    return intrinsic(typing)


low_lanes = _half("low_lanes", 0, "The first 8 of 16 floats.")
high_lanes = _half("high_lanes", 1, "The last 8 of 16 floats.")
join_f32 = _instruction(_WIDE[F32], F32, F32, name="join_f32", doc="16 floats: a's, then b's.")(lambda b, a: _concat(b, *a))
join_u8 = _instruction(_WIDE[U8], U8, U8, name="join_u8", doc="64 bytes: a's, then b's.")(lambda b, a: _concat(b, *a))


def _lane_byte(builder: ir.IRBuilder, vector: Any, byte: int, signed: bool) -> Any:
    """Byte `byte` of each 4-byte lane as int32."""
    lanes = builder.bitcast(vector, I32.llvm)
    up = builder.shl(lanes, _constant(I32.llvm, 24 - 8 * byte)) if byte < 3 else lanes
    return (builder.ashr if signed else builder.lshr)(up, _constant(I32.llvm, 24))


def _make_channel(byte: int, signed: bool) -> Any:
    kind = "signed" if signed else "unsigned"
    return _instruction(F32, U8, name=f"channel{byte}_{kind}", doc=f"Channel {byte} of each row, {kind}, as float.")(
        lambda b, a: b.sitofp(_lane_byte(b, a[0], byte, signed), F32.llvm)
    )


channels_unsigned = tuple(_make_channel(byte, False) for byte in range(4))
channels_signed = tuple(_make_channel(byte, True) for byte in range(4))


# ---- integer dot products: 8 rows of codes times the same int8 activations
def _activations(builder: ir.IRBuilder, address: Any, k: int, codes: ir.VectorType = U8.llvm) -> Any:
    """Four int8 activations in all lanes of a vector like the codes."""
    four = _load(builder, builder.add(address, ir.Constant(_i64, 4 * k)), _i32)
    return builder.bitcast(_broadcast(builder, four, codes.count // 4), codes)


def _pair_sums_to_i32(builder: ir.IRBuilder, pairs: Any) -> Any:
    return _call(builder, "llvm.x86.avx2.pmadd.wd", I32.llvm, [pairs, _constant(_v16i16, 1)])


def _dot_avx2(builder: ir.IRBuilder, codes: Sequence[Any], address: Any, signed: bool, per_widening: int) -> Any:
    """vpmaddubsw sums pairs into int16; `per_widening` of them fit before they must widen to int32."""
    total: Any = None
    partial: Any = None
    for k, code in enumerate(codes):
        x = _activations(builder, address, k)
        if signed:  # unsigned times signed is what the instruction takes: |w| (x sign w)
            nothing = _constant(U8.llvm, 0)
            x = _call(builder, "llvm.x86.avx2.psign.b", U8.llvm, [x, code])
            code = builder.select(builder.icmp_signed("<", code, nothing), builder.sub(nothing, code), code)
        pairs = _call(builder, "llvm.x86.avx2.pmadd.ub.sw", _v16i16, [code, x])
        partial = pairs if partial is None else builder.add(partial, pairs)
        if (k + 1) % per_widening == 0 or k + 1 == len(codes):
            wide = _pair_sums_to_i32(builder, partial)
            total = wide if total is None else builder.add(total, wide)
            partial = None
    return total


def _dot_vnni(builder: ir.IRBuilder, codes: Sequence[Any], address: Any, signed: bool) -> Any:
    """vpdpbusd adds four unsigned times signed products to each int32. Signed codes w go in as w + 128: w x = (w + 128) x - 128 x."""
    lanes = ir.VectorType(_i32, codes[0].type.count // 4)
    name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes.count}"
    total: Any = _constant(lanes, 0)
    if signed:
        total = builder.neg(_spread(builder, _times_128(builder, address, len(codes)), lanes.count))
        codes = [builder.xor(code, _constant(code.type, 128)) for code in codes]
    for k, code in enumerate(codes):
        total = _call(builder, name, lanes, [total, code, _activations(builder, address, k, code.type)])
    return total


def _times_128(builder: ir.IRBuilder, address: Any, n_codes: int) -> Any:
    """128 times the sum of the 4 n_codes activations at an address, in each of n_codes lanes."""
    lanes, bytes_ = ir.VectorType(_i32, n_codes), ir.VectorType(_i8, 4 * n_codes)
    x = _load(builder, address, bytes_)
    sums = _call(builder, f"llvm.x86.avx512.vpdpbusd.{32 * n_codes}", lanes, [_constant(lanes, 0), _constant(bytes_, 128), x])
    for distance in (1, 2, 4):
        if distance < n_codes:
            other = ir.Constant(lanes, [i ^ distance for i in range(n_codes)])
            sums = builder.add(sums, builder.shuffle_vector(sums, sums, other))
    return sums


def _spread(builder: ir.IRBuilder, vector: Any, count: int) -> Any:
    """A vector of equal lanes with more of them."""
    index = ir.Constant(ir.VectorType(_i32, count), [0] * count)
    return vector if vector.type.count == count else builder.shuffle_vector(vector, vector, index)


def _dot_neon(builder: ir.IRBuilder, codes: Sequence[Any], address: Any) -> Any:
    """sdot adds four signed products to each int32; codes stay below 128, so signed and unsigned agree."""
    v4i32 = ir.VectorType(_i32, 4)
    totals: list[Any] = [_constant(v4i32, 0), _constant(v4i32, 0)]
    for k, code in enumerate(codes):
        x, _ = _split(builder, _activations(builder, address, k))
        for h, half in enumerate(_split(builder, code)):
            totals[h] = _call(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", v4i32, [totals[h], half, x])
    return _concat(builder, *totals)


def _dot_generic(builder: ir.IRBuilder, codes: Sequence[Any], address: Any, signed: bool) -> Any:
    total: Any = _constant(I32.llvm, 0)
    for k, code in enumerate(codes):
        x = _activations(builder, address, k)
        for byte in range(4):
            product = builder.mul(_lane_byte(builder, code, byte, signed), _lane_byte(builder, x, byte, True))
            total = builder.add(total, product)
    return total


def _make_dot(name: str, n_codes: int, signed: bool, per_widening: int) -> Any:
    def lower(builder: ir.IRBuilder, args: Sequence[Any]) -> Any:
        codes, address = args[:-1], args[-1]
        isa = ISA.get()
        if isa is Isa.AVX2:
            return _dot_avx2(builder, codes, address, signed, per_widening)
        if isa in (Isa.AVXVNNI, Isa.AVX512VNNI):
            return _dot_vnni(builder, codes, address, signed)
        if isa is Isa.NEON:
            return _dot_neon(builder, codes, address)
        return _dot_generic(builder, codes, address, signed)

    doc = f"Per row, sum of {4 * n_codes} codes times the int8 activations at an address."
    return _instruction(I32, *[U8] * n_codes, types.intp, name=name, doc=doc)(lower)


# how many vpmaddubsw fit int16: 8 * 2 * 15 * 127 = 30480, 4 * 2 * 31 * 127 = 31496, 2 * 2 * 63 * 127 = 32004
dot32_u4 = _make_dot("dot32_u4", 8, signed=False, per_widening=8)
dot32_u5 = _make_dot("dot32_u5", 8, signed=False, per_widening=4)
dot16_u6 = _make_dot("dot16_u6", 4, signed=False, per_widening=2)
dot32_s8 = _make_dot("dot32_s8", 8, signed=True, per_widening=1)


# ---- threads
def _ordered(builder: ir.IRBuilder, address: Any) -> Any:
    return builder.inttoptr(address, _i64.as_pointer())


atomic_add = _instruction(types.int64, types.intp, types.int64, name="atomic_add", doc="Add to an int64; its value before.")(
    lambda b, a: b.atomic_rmw("add", _ordered(b, a[0]), a[1], "seq_cst")
)
atomic_load = _instruction(types.int64, types.intp, name="atomic_load", doc="Read an int64, acquiring what was released with it.")(
    lambda b, a: b.load_atomic(_ordered(b, a[0]), "acquire", 8)
)


def _release(builder: ir.IRBuilder, args: Sequence[Any]) -> None:
    builder.store_atomic(args[1], _ordered(builder, args[0]), "release", 8)


atomic_store = _instruction(types.void, types.intp, types.int64, name="atomic_store", doc="Write an int64, releasing what came before.")(
    _release
)


def _pause(builder: ir.IRBuilder, _args: Sequence[Any]) -> None:
    isa = ISA.get()
    if isa in (Isa.AVX2, Isa.AVXVNNI, Isa.AVX512VNNI):
        _call(builder, "llvm.x86.sse2.pause", ir.VoidType(), [])
    elif isa is Isa.NEON:
        _call(builder, "llvm.aarch64.hint", ir.VoidType(), [ir.Constant(_i32, 1)])


pause = _instruction(types.void, name="pause", doc="Tell the core that this is a spin loop.")(_pause)
yield_core = _instruction(types.void, name="yield_core", doc="sched_yield: let another runnable thread have the core.")(
    lambda b, _a: _call(b, "sched_yield", _i32, [])
)

KERNEL = types.int64(types.intp, types.intp, types.intp, types.intp)
"""Signature of every kernel: (operation record, job record, thread number, number of threads) -> 0."""


def _call_kernel(builder: ir.IRBuilder, args: Sequence[Any]) -> Any:
    """Call a numba function by address; its convention is i32 f(result*, exception**, arguments...)."""
    address, *rest = args
    pointer = _i64.as_pointer()
    function_type = ir.FunctionType(_i32, [pointer, pointer] + [_i64] * len(rest))
    result = cgutils.alloca_once(builder, _i64)
    exception = cgutils.alloca_once(builder, _i64)
    return builder.call(builder.inttoptr(address, function_type.as_pointer()), [result, exception, *rest])


call_kernel = _instruction(types.int32, *[types.intp] * 5, name="call_kernel", doc="Run the kernel at an address.")(_call_kernel)

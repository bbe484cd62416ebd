"""How a kernel reads one packed group of each block format: its codes, its scales, its dot product with int8 activations.

For every format: value = scale * code + offset, per row. A group is 32 channels of 8 rows (quant/pack_rows.py); `codes`
gives eight vectors, vector k holding channels 4k .. 4k+3 of the eight rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from edgelm.backends.cpu.simd import (
    Isa,
    add,
    channels_signed,
    channels_unsigned,
    dot16_u6,
    dot32_s8,
    dot32_u4,
    dot32_u5,
    fma,
    high_lanes,
    high_nibbles,
    iq4_values,
    join_f32,
    join_u8,
    load_f16,
    load_i8_f32,
    load_u8,
    load_u8_f32,
    low_lanes,
    low_nibbles,
    mul,
    splat,
    splat_like,
    store_f32,
    sub,
    to_f32,
    with_bit_4,
    with_bits_45,
    zero,
)
from edgelm.quant.pack_rows import LAYOUTS, RowLayout

inline = njit(forceinline=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz", "arcp"})


@dataclass(frozen=True)
class GroupReader:
    """The compiled pieces that kernels of one format are made of.

    Attributes:
        layout: where things are.
        header(p): per-row d and dmin of the block at p; zeros for formats without superblocks.
        codes(q): the eight vectors of the group at q.
        scales(d, dmin, q): scale and offset of channels 0-15, then of channels 16-31.
        accumulate(acc, codes, scales, x, xs, total, half): acc plus the dot product with 32 int8 activations at x, of scale xs;
            total and half are xs times the sums of all 32 and of the first 16.
        channels: the four functions that give byte b of each row's lane as float.
    """

    layout: RowLayout
    header: Any
    codes: Any
    scales: Any
    accumulate: Any
    channels: tuple[Any, ...]


@inline
def _no_header(_p):
    return zero(), zero()


@inline
def _nibble_codes(q):
    a, b, c, d = load_u8(q), load_u8(q + 32), load_u8(q + 64), load_u8(q + 96)
    return (
        low_nibbles(a), low_nibbles(b), low_nibbles(c), low_nibbles(d),
        high_nibbles(a), high_nibbles(b), high_nibbles(c), high_nibbles(d),
    )  # fmt: skip


@inline
def _iq4_codes(q):
    c = _nibble_codes(q)
    return (
        iq4_values(c[0]), iq4_values(c[1]), iq4_values(c[2]), iq4_values(c[3]),
        iq4_values(c[4]), iq4_values(c[5]), iq4_values(c[6]), iq4_values(c[7]),
    )  # fmt: skip


@inline
def _byte_codes(q):
    return (
        load_u8(q), load_u8(q + 32), load_u8(q + 64), load_u8(q + 96),
        load_u8(q + 128), load_u8(q + 160), load_u8(q + 192), load_u8(q + 224),
    )  # fmt: skip


@inline
def _five_bit_codes(q):
    c, plane = _nibble_codes(q), load_u8(q + 128)
    return (
        with_bit_4(c[0], plane, 0), with_bit_4(c[1], plane, 1), with_bit_4(c[2], plane, 2), with_bit_4(c[3], plane, 3),
        with_bit_4(c[4], plane, 4), with_bit_4(c[5], plane, 5), with_bit_4(c[6], plane, 6), with_bit_4(c[7], plane, 7),
    )  # fmt: skip


@inline
def _six_bit_codes(q):
    c, low, high = _nibble_codes(q), load_u8(q + 128), load_u8(q + 160)
    return (
        with_bits_45(c[0], low, 0), with_bits_45(c[1], low, 2), with_bits_45(c[2], low, 4), with_bits_45(c[3], low, 6),
        with_bits_45(c[4], high, 0), with_bits_45(c[5], high, 2), with_bits_45(c[6], high, 4), with_bits_45(c[7], high, 6),
    )  # fmt: skip


def _make_centered(at: int, center: int) -> Any:
    """scale d, offset -center d."""
    negative = np.float32(-center)

    @inline
    def scales(_d, _dmin, q):
        d = load_f16(q + at)
        offset = mul(d, splat(negative))
        return d, offset, d, offset

    return scales


def _make_with_min(at: int) -> Any:
    """scale d, offset m."""

    @inline
    def scales(_d, _dmin, q):
        d, m = load_f16(q + at), load_f16(q + at + 16)
        return d, m, d, m

    return scales


def _make_k_scales(at: int) -> Any:
    """scale d sc, offset -dmin mn."""

    @inline
    def scales(d, dmin, q):
        scale = mul(d, load_u8_f32(q + at))
        offset = sub(zero(), mul(dmin, load_u8_f32(q + at + 8)))
        return scale, offset, scale, offset

    return scales


@inline
def _d_dmin(p):
    return load_f16(p), load_f16(p + 16)


@inline
def _d_only(p):
    return load_f16(p), zero()


_Q6_SCALES = LAYOUTS["Q6_K"].offset("signed2")
_XS_SCALES = LAYOUTS["IQ4_XS"].offset("signed")


@inline
def _q6_scales(d, _dmin, q):
    center = splat(np.float32(-32.0))
    first, second = mul(d, load_i8_f32(q + _Q6_SCALES)), mul(d, load_i8_f32(q + _Q6_SCALES + 8))
    return first, mul(first, center), second, mul(second, center)


@inline
def _xs_scales(d, _dmin, q):
    scale = mul(d, load_i8_f32(q + _XS_SCALES))
    return scale, zero(), scale, zero()


@inline
def _accumulate_u4(acc, c, s, x, xs, total, _half):
    dot = dot32_u4(c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7], x)
    return fma(s[1], splat_like(acc, total), fma(mul(s[0], splat_like(acc, xs)), to_f32(dot), acc))


@inline
def _accumulate_u5(acc, c, s, x, xs, total, _half):
    dot = dot32_u5(c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7], x)
    return fma(s[1], splat_like(acc, total), fma(mul(s[0], splat_like(acc, xs)), to_f32(dot), acc))


@inline
def _accumulate_u6(acc, c, s, x, xs, total, half):
    first, second = dot16_u6(c[0], c[1], c[2], c[3], x), dot16_u6(c[4], c[5], c[6], c[7], x + 16)
    scaled = add(mul(s[0], to_f32(first)), mul(s[2], to_f32(second)))
    return fma(s[1], splat_like(acc, half), fma(s[3], splat_like(acc, total - half), fma(scaled, splat_like(acc, xs), acc)))


@inline
def _accumulate_s8(acc, c, s, x, xs, _total, _half):
    dot = dot32_s8(c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7], x)
    return fma(mul(s[0], splat_like(acc, xs)), to_f32(dot), acc)


def _reader(name: str, header: Any, codes: Any, make_scales: Any, accumulate: Any, channels: tuple[Any, ...]) -> tuple[str, GroupReader]:
    return name, GroupReader(LAYOUTS[name], header, codes, make_scales, accumulate, channels)


def _at(name: str, field: str) -> int:
    return LAYOUTS[name].offset(field)


READERS: dict[str, GroupReader] = dict(
    (
        _reader("Q4_0", _no_header, _nibble_codes, _make_centered(_at("Q4_0", "d"), 8), _accumulate_u4, channels_unsigned),
        _reader("Q4_1", _no_header, _nibble_codes, _make_with_min(_at("Q4_1", "d")), _accumulate_u4, channels_unsigned),
        _reader("Q5_0", _no_header, _five_bit_codes, _make_centered(_at("Q5_0", "d"), 16), _accumulate_u5, channels_unsigned),
        _reader("Q5_1", _no_header, _five_bit_codes, _make_with_min(_at("Q5_1", "d")), _accumulate_u5, channels_unsigned),
        _reader("Q8_0", _no_header, _byte_codes, _make_centered(_at("Q8_0", "d"), 0), _accumulate_s8, channels_signed),
        _reader("IQ4_NL", _no_header, _iq4_codes, _make_centered(_at("IQ4_NL", "d"), 0), _accumulate_s8, channels_signed),
        _reader("Q4_K", _d_dmin, _nibble_codes, _make_k_scales(_at("Q4_K", "scale")), _accumulate_u4, channels_unsigned),
        _reader("Q5_K", _d_dmin, _five_bit_codes, _make_k_scales(_at("Q5_K", "scale")), _accumulate_u5, channels_unsigned),
        _reader("Q6_K", _d_only, _six_bit_codes, _q6_scales, _accumulate_u6, channels_unsigned),
        _reader("IQ4_XS", _d_only, _iq4_codes, _xs_scales, _accumulate_s8, channels_signed),
    )
)


@dataclass(frozen=True)
class TileReader:
    """How a tile of tokens reads a group of one run of eight rows, or of two runs that lie `step` bytes apart, side by side.

    Attributes:
        n_runs: 1 or 2.
        double: whether registers suffice for twice as many tokens.
        header(w, step): of the block at w.
        group(w, step, header): codes and scales, as accumulate takes them.
        join(a, b): one vector of what is given for each run.
        store(y, y_step, sums): the outputs of each run, y_step bytes apart.
    """

    n_runs: int
    double: bool
    header: Any
    group: Any
    join: Any
    store: Any


def tile_reader(reader: GroupReader, isa: Isa) -> TileReader:
    """Two runs where vectors are wide enough: 8 registers of codes and 8 of sums need AVX-512's 32."""
    return _two_runs(reader) if isa is Isa.AVX512VNNI else _one_run(reader)


def _one_run(reader: GroupReader) -> TileReader:
    codes, scales, read_header = reader.codes, reader.scales, reader.header

    @inline
    def header(w, _step):
        return read_header(w)

    @inline
    def group(w, _step, h):
        return codes(w), scales(h[0], h[1], w)

    @inline
    def join(a, _b):
        return a

    @inline
    def store(y, _y_step, sums):
        store_f32(y, sums)

    return TileReader(1, False, header, group, join, store)


def _two_runs(reader: GroupReader) -> TileReader:
    codes, scales, read_header = reader.codes, reader.scales, reader.header

    @inline
    def header(w, step):
        return read_header(w), read_header(w + step)

    @inline
    def group(w, step, h):
        a, b = codes(w), codes(w + step)
        joined = (
            join_u8(a[0], b[0]), join_u8(a[1], b[1]), join_u8(a[2], b[2]), join_u8(a[3], b[3]),
            join_u8(a[4], b[4]), join_u8(a[5], b[5]), join_u8(a[6], b[6]), join_u8(a[7], b[7]),
        )  # fmt: skip
        s, t = scales(h[0][0], h[0][1], w), scales(h[1][0], h[1][1], w + step)
        return joined, (join_f32(s[0], t[0]), join_f32(s[1], t[1]), join_f32(s[2], t[2]), join_f32(s[3], t[3]))

    @inline
    def join(a, b):
        return join_f32(a, b)

    @inline
    def store(y, y_step, sums):
        store_f32(y, low_lanes(sums))
        store_f32(y + y_step, high_lanes(sums))

    return TileReader(2, True, header, group, join, store)

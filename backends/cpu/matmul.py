"""Matrix products and embedding look-up over packed weights: y[t] = W x[t] + b for the rows of one operation.

Activations of one row (an `act` row, written by quantize_row in elementwise.py), for n channels in g = n / 32 groups:

    int8 [n] | scale float32 [g] | scale * sum of 32, float32 [g] | scale * sum of the first 16, float32 [g] | float32 [n]

with n rounded up to whole groups. The kernels of block formats take n in whole blocks, as the formats do.
"""

from __future__ import annotations

from typing import Any

from edgelm.backends.cpu.codes import READERS, GroupReader, inline, tile_reader
from edgelm.backends.cpu.records import EMBED, JOB, MATMUL, OP
from edgelm.backends.cpu.rows import share_rows
from edgelm.backends.cpu.simd import (
    ISA,
    fma,
    lane,
    load_bf16,
    load_f16,
    load_f32,
    read_f32,
    read_f64,
    read_i32,
    read_i64,
    splat,
    store_f32,
    write_f32,
    zero,
)

TOKENS = 4  # tokens per register tile: 8 registers of codes and 4 of sums fit AVX2's 16
FLOAT_LOADS = {"F32": (load_f32, 4), "F16": (load_f16, 2), "BF16": (load_bf16, 2)}
_L2_BYTES = 1 << 18


@inline
def _output(op, job):
    """Address and row stride of the result; the job's logits where the operation names no buffer."""
    out = read_i64(op + MATMUL.out)
    if out == 0:
        return read_i64(job + JOB.logits), read_i64(job + JOB.logits_stride)
    return out, read_i64(op + MATMUL.out_stride)


@inline
def _start(bias, run):
    return load_f32(bias + 32 * run) if bias != 0 else zero()


@inline
def floats_at(n):
    """Offset of the float32 values in an act row of n channels."""
    return (n + 31) // 32 * 44


def _make_matmul(pair: Any, tile: Any, run_bytes: Any, tile_runs: int = 1, double_tile: Any = None) -> Any:
    """The loop over runs of eight rows and tiles of tokens, around the kernels for one token and for TOKENS tokens.

    pair(w, step, n, act, y, y_step, start0, start1) computes the outputs of two runs, `step` bytes apart, for one token: two streams
    through memory keep a core's prefetchers busier than one, and share the loads of activations.
    tile(w, step, n, act, act_stride, y, y_step, y_stride, start0, start1) computes the outputs of one or two runs for TOKENS tokens,
    double_tile for twice as many, where there is one.
    run_bytes(n) is the size of a run of n columns.
    """
    doubles = double_tile is not None

    def matmul(op, job, tid, nt):
        n_rows = read_i64(job + read_i64(op + OP.rows))
        n_runs, n = read_i64(op + MATMUL.n_runs), read_i64(op + MATMUL.n_columns)
        weights, bias = read_i64(op + MATMUL.weights), read_i64(op + MATMUL.bias)
        act, stride = read_i64(op + MATMUL.act), read_i64(op + MATMUL.act_stride)
        out, out_stride = _output(op, job)
        first, last = n_runs * tid // nt, n_runs * (tid + 1) // nt
        step = run_bytes(n)
        if n_rows == 1:
            half = (last - first + 1) // 2
            for run in range(first, first + half):
                apart = half if run + half < last else 0  # an odd last run is computed twice
                w, y = weights + run * step, out + 32 * run
                pair(w, apart * step, n, act + tid * stride, y, 32 * apart, _start(bias, run), _start(bias, run + apart))
            return 0
        # as many tokens at a time as keep their activations in the second-level cache
        share = (last - first + tile_runs - 1) // tile_runs
        chunk = max(TOKENS, _L2_BYTES // n // TOKENS * TOKENS)
        for t0 in range(0, n_rows, chunk):
            end = min(t0 + chunk, n_rows)
            rest = t0 + (end - t0) // (2 * TOKENS) * (2 * TOKENS) if doubles else t0
            for run in range(first, first + share):
                apart = share if run + share < last else 0  # an odd last run is computed twice
                w, start0, start1 = weights + run * step, _start(bias, run), _start(bias, run + apart)
                if doubles:
                    for t in range(t0, rest, 2 * TOKENS):
                        y = out + t * out_stride + 32 * run
                        double_tile(w, apart * step, n, act + t * stride, stride, y, 32 * apart, out_stride, start0, start1)
                for t in range(rest, end, TOKENS):
                    y = out + t * out_stride + 32 * run
                    tile(w, apart * step, n, act + t * stride, stride, y, 32 * apart, out_stride, start0, start1)
        return 0

    return matmul


def _make_run_bytes(reader: GroupReader) -> Any:
    channels, block_bytes = 32 * reader.layout.n_groups, reader.layout.dtype.itemsize

    @inline
    def run_bytes(n):
        return n // channels * block_bytes

    return run_bytes


def make_matmul_int8(format_name: str) -> Any:
    """Codes times int8 activations, exact in integers within a group, scaled per group."""
    reader = READERS[format_name]
    header, codes, scales, accumulate = reader.header, reader.codes, reader.scales, reader.accumulate
    of_tile = tile_reader(reader, ISA.get())
    tile_header, group, join, store = of_tile.header, of_tile.group, of_tile.join, of_tile.store
    header_bytes, group_bytes, n_groups = reader.layout.header_bytes, reader.layout.group_bytes, reader.layout.n_groups

    @inline
    def pair(w, step, n, x, y, y_step, acc0, acc1):
        g, n8, n4 = x + n, n // 8, n // 4
        for _block in range(n // (32 * n_groups)):
            d0, dmin0 = header(w)
            d1, dmin1 = header(w + step)
            w += header_bytes
            for _group in range(n_groups):
                v = w + step
                acc0 = accumulate(acc0, codes(w), scales(d0, dmin0, w), x, read_f32(g), read_f32(g + n8), read_f32(g + n4))
                acc1 = accumulate(acc1, codes(v), scales(d1, dmin1, v), x, read_f32(g), read_f32(g + n8), read_f32(g + n4))
                w += group_bytes
                x += 32
                g += 4
        store_f32(y, acc0)
        store_f32(y + y_step, acc1)

    @inline
    def four(accs, group, x, g, stride, n8, n4):
        """The sums of four tokens after one more group."""
        c, s = group
        x1, x2, x3, g1, g2, g3 = x + stride, x + 2 * stride, x + 3 * stride, g + stride, g + 2 * stride, g + 3 * stride
        return (
            accumulate(accs[0], c, s, x, read_f32(g), read_f32(g + n8), read_f32(g + n4)),
            accumulate(accs[1], c, s, x1, read_f32(g1), read_f32(g1 + n8), read_f32(g1 + n4)),
            accumulate(accs[2], c, s, x2, read_f32(g2), read_f32(g2 + n8), read_f32(g2 + n4)),
            accumulate(accs[3], c, s, x3, read_f32(g3), read_f32(g3 + n8), read_f32(g3 + n4)),
        )

    @inline
    def store_four(accs, y, y_step, y_stride):
        store(y, y_step, accs[0])
        store(y + y_stride, y_step, accs[1])
        store(y + 2 * y_stride, y_step, accs[2])
        store(y + 3 * y_stride, y_step, accs[3])

    @inline
    def tile(w, step, n, x, stride, y, y_step, y_stride, start0, start1):
        start = join(start0, start1)
        accs = (start, start, start, start)
        g, n8, n4 = x + n, n // 8, n // 4
        for _block in range(n // (32 * n_groups)):
            h = tile_header(w, step)
            w += header_bytes
            for _group in range(n_groups):
                accs = four(accs, group(w, step, h), x, g, stride, n8, n4)
                w += group_bytes
                x += 32
                g += 4
        store_four(accs, y, y_step, y_stride)

    @inline
    def double_tile(w, step, n, x, stride, y, y_step, y_stride, start0, start1):
        start = join(start0, start1)
        first, second = (start, start, start, start), (start, start, start, start)
        g, n8, n4 = x + n, n // 8, n // 4
        for _block in range(n // (32 * n_groups)):
            h = tile_header(w, step)
            w += header_bytes
            for _group in range(n_groups):
                weights = group(w, step, h)
                first = four(first, weights, x, g, stride, n8, n4)
                second = four(second, weights, x + 4 * stride, g + 4 * stride, stride, n8, n4)
                w += group_bytes
                x += 32
                g += 4
        store_four(first, y, y_step, y_stride)
        store_four(second, y + 4 * y_stride, y_step, y_stride)

    return _make_matmul(pair, tile, _make_run_bytes(reader), of_tile.n_runs, double_tile if of_tile.double else None)


def _make_weights(reader: GroupReader) -> Any:
    """The four channels of code vector k as float weights of eight rows: scale * code + offset."""
    c0, c1, c2, c3 = reader.channels

    @inline
    def weights(code, scale, offset):
        return (
            fma(scale, c0(code), offset), fma(scale, c1(code), offset),
            fma(scale, c2(code), offset), fma(scale, c3(code), offset),
        )  # fmt: skip

    return weights


def make_matmul_f32(format_name: str) -> Any:
    """Dequantized weights times float32 activations: the same model without activation quantization."""
    reader = READERS[format_name]
    header, codes, scales, weights = reader.header, reader.codes, reader.scales, _make_weights(reader)
    header_bytes, group_bytes, n_groups = reader.layout.header_bytes, reader.layout.group_bytes, reader.layout.n_groups

    @inline
    def four(acc, w, x):
        acc = fma(w[0], splat(read_f32(x)), acc)
        acc = fma(w[1], splat(read_f32(x + 4)), acc)
        acc = fma(w[2], splat(read_f32(x + 8)), acc)
        return fma(w[3], splat(read_f32(x + 12)), acc)

    @inline
    def tile(w, _step, n, act, stride, y, _y_step, y_stride, start, _start1):
        acc0, acc1, acc2, acc3 = start, start, start, start
        x = act + floats_at(n)
        for _block in range(n // (32 * n_groups)):
            d, dmin = header(w)
            w += header_bytes
            for _group in range(n_groups):
                c, s = codes(w), scales(d, dmin, w)
                for k in range(8):
                    v = weights(c[k], s[0], s[1]) if k < 4 else weights(c[k], s[2], s[3])
                    acc0 = four(acc0, v, x)
                    acc1 = four(acc1, v, x + stride)
                    acc2 = four(acc2, v, x + 2 * stride)
                    acc3 = four(acc3, v, x + 3 * stride)
                    x += 16
                w += group_bytes
        store_f32(y, acc0)
        store_f32(y + y_stride, acc1)
        store_f32(y + 2 * y_stride, acc2)
        store_f32(y + 3 * y_stride, acc3)

    @inline
    def pair(w, step, n, act, y, y_step, acc0, acc1):
        x = act + floats_at(n)
        for _block in range(n // (32 * n_groups)):
            d0, dmin0 = header(w)
            d1, dmin1 = header(w + step)
            w += header_bytes
            for _group in range(n_groups):
                c0, s0 = codes(w), scales(d0, dmin0, w)
                c1, s1 = codes(w + step), scales(d1, dmin1, w + step)
                for k in range(8):
                    acc0 = four(acc0, weights(c0[k], s0[0], s0[1]) if k < 4 else weights(c0[k], s0[2], s0[3]), x)
                    acc1 = four(acc1, weights(c1[k], s1[0], s1[1]) if k < 4 else weights(c1[k], s1[2], s1[3]), x)
                    x += 16
                w += group_bytes
        store_f32(y, acc0)
        store_f32(y + y_step, acc1)

    return _make_matmul(pair, tile, _make_run_bytes(reader))


def make_matmul_float(format_name: str) -> Any:
    """F32, F16 and BF16 weights, widened exactly, times float32 activations."""
    load, width = FLOAT_LOADS[format_name]

    @inline
    def run_bytes(n):
        return n * 8 * width

    @inline
    def pair(w, step, n, act, y, y_step, acc0, acc1):
        x = act + floats_at(n)
        for _c in range(n):
            v = splat(read_f32(x))
            acc0 = fma(load(w), v, acc0)
            acc1 = fma(load(w + step), v, acc1)
            w += 8 * width
            x += 4
        store_f32(y, acc0)
        store_f32(y + y_step, acc1)

    @inline
    def tile(w, _step, n, act, stride, y, _y_step, y_stride, start, _start1):
        acc0, acc1, acc2, acc3 = start, start, start, start
        x = act + floats_at(n)
        for _c in range(n):
            v = load(w)
            acc0 = fma(v, splat(read_f32(x)), acc0)
            acc1 = fma(v, splat(read_f32(x + stride)), acc1)
            acc2 = fma(v, splat(read_f32(x + 2 * stride)), acc2)
            acc3 = fma(v, splat(read_f32(x + 3 * stride)), acc3)
            w += 8 * width
            x += 4
        store_f32(y, acc0)
        store_f32(y + y_stride, acc1)
        store_f32(y + 2 * y_stride, acc2)
        store_f32(y + 3 * y_stride, acc3)

    return _make_matmul(pair, tile, run_bytes)


def _make_embed(copy_row: Any, run_bytes: Any) -> Any:
    """x[t] = scale * W[token t], around copy_row(w, n, lane, x, scale) for the row in one lane of a run."""

    def embed(op, job, tid, nt):
        n_rows = read_i64(job + read_i64(op + OP.rows))
        n, table = read_i64(op + EMBED.n_columns), read_i64(op + EMBED.table)
        x, stride, scale = read_i64(op + EMBED.x), read_i64(op + EMBED.x_stride), read_f64(op + EMBED.scale)
        first, last, shift = share_rows(n_rows, tid, nt)
        for t in range(first, last):
            token = read_i32(read_i64(job + JOB.tokens) + 4 * t)
            copy_row(table + token // 8 * run_bytes(n), n, token % 8, x + (t + shift) * stride, scale)
        return 0

    return embed


def make_embed(format_name: str) -> Any:
    """Embedding look-up in a block format."""
    reader = READERS[format_name]
    header, codes, scales, weights = reader.header, reader.codes, reader.scales, _make_weights(reader)
    header_bytes, group_bytes, n_groups = reader.layout.header_bytes, reader.layout.group_bytes, reader.layout.n_groups

    @inline
    def copy_row(w, n, i, x, scale):
        for _block in range(n // (32 * n_groups)):
            d, dmin = header(w)
            w += header_bytes
            for _group in range(n_groups):
                c, s = codes(w), scales(d, dmin, w)
                for k in range(8):
                    v = weights(c[k], s[0], s[1]) if k < 4 else weights(c[k], s[2], s[3])
                    write_f32(x, lane(v[0], i) * scale)
                    write_f32(x + 4, lane(v[1], i) * scale)
                    write_f32(x + 8, lane(v[2], i) * scale)
                    write_f32(x + 12, lane(v[3], i) * scale)
                    x += 16
                w += group_bytes

    return _make_embed(copy_row, _make_run_bytes(reader))


def make_embed_float(format_name: str) -> Any:
    """Embedding look-up in a float format."""
    load, width = FLOAT_LOADS[format_name]

    @inline
    def run_bytes(n):
        return n * 8 * width

    @inline
    def copy_row(w, n, i, x, scale):
        for c in range(n):
            write_f32(x + 4 * c, lane(load(w + 8 * width * c), i) * scale)

    return _make_embed(copy_row, run_bytes)

"""Operations on one row of channels at a time: norms, the gate, and the quantization of activations."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgelm.backends.cpu.codes import inline
from edgelm.backends.cpu.matmul import floats_at
from edgelm.backends.cpu.records import GATE, JOB, MERGE, NORM, OP, QUANTIZE
from edgelm.backends.cpu.rows import share_rows
from edgelm.backends.cpu.simd import (
    absolute,
    add,
    add_i32,
    div,
    exp,
    fma,
    lane_max,
    lane_sum,
    lane_sum_i32,
    load_f32,
    maximum,
    mul,
    read_f32,
    read_f64,
    read_i32,
    read_i64,
    round_i32,
    splat,
    store_f32,
    store_i8,
    sub,
    write_f32,
    zero,
)

_ONE = np.float32(1.0)


@inline
def quantize_row(x, n, act):
    """The int8 part of an act row from n floats at x: per 32 channels, scale = max |x| / 127 and code = round(x / scale)."""
    g, n8, n4 = act + n, n // 8, n // 4
    for _group in range(n // 32):
        a, b, c, d = load_f32(x), load_f32(x + 32), load_f32(x + 64), load_f32(x + 96)
        largest = lane_max(maximum(maximum(absolute(a), absolute(b)), maximum(absolute(c), absolute(d))))
        scale = largest / np.float32(127.0)
        inverse = splat(np.float32(127.0) / largest if largest > np.float32(0.0) else np.float32(0.0))
        qa, qb, qc, qd = round_i32(mul(a, inverse)), round_i32(mul(b, inverse)), round_i32(mul(c, inverse)), round_i32(mul(d, inverse))
        store_i8(act, qa)
        store_i8(act + 8, qb)
        store_i8(act + 16, qc)
        store_i8(act + 24, qd)
        half = lane_sum_i32(add_i32(qa, qb))
        write_f32(g, scale)
        write_f32(g + n8, scale * np.float32(half + lane_sum_i32(add_i32(qc, qd))))
        write_f32(g + n4, scale * np.float32(half))
        x += 128
        act += 32
        g += 4


@inline
def inverse_rms(x, n, eps):
    """1 / sqrt(mean(x^2) + eps)."""
    squares = zero()
    for i in range(0, n - 7, 8):
        v = load_f32(x + 4 * i)
        squares = fma(v, v, squares)
    total = lane_sum(squares)
    for i in range(n // 8 * 8, n):
        total += read_f32(x + 4 * i) * read_f32(x + 4 * i)
    return _ONE / np.sqrt(total / np.float32(n) + eps)


@inline
def scale_by(x, weight, factor, n, y):
    """y = factor weight x, elementwise."""
    f = splat(factor)
    for i in range(0, n - 7, 8):
        store_f32(y + 4 * i, mul(mul(load_f32(x + 4 * i), f), load_f32(weight + 4 * i)))
    for i in range(n // 8 * 8, n):
        write_f32(y + 4 * i, read_f32(x + 4 * i) * factor * read_f32(weight + 4 * i))


@inline
def _add_scaled(x, delta, factor, n, y):
    """y = x + factor delta."""
    f = splat(factor)
    for i in range(0, n - 7, 8):
        store_f32(y + 4 * i, fma(load_f32(delta + 4 * i), f, load_f32(x + 4 * i)))
    for i in range(n // 8 * 8, n):
        write_f32(y + 4 * i, read_f32(x + 4 * i) + factor * read_f32(delta + 4 * i))


@inline
def _add_normed(x, delta, weight, factor, n, y):
    """y = x + factor weight delta."""
    f = splat(factor)
    for i in range(0, n - 7, 8):
        normed = mul(mul(load_f32(delta + 4 * i), f), load_f32(weight + 4 * i))
        store_f32(y + 4 * i, add(load_f32(x + 4 * i), normed))
    for i in range(n // 8 * 8, n):
        write_f32(y + 4 * i, read_f32(x + 4 * i) + factor * read_f32(delta + 4 * i) * read_f32(weight + 4 * i))


def norm(op, job, tid, nt):
    """x += residual_scale * (post norm of) delta; act = RMSNorm(x) * weight, quantized where asked."""
    n_rows, n_tokens = read_i64(job + read_i64(op + OP.rows)), read_i64(job + JOB.n_tokens)
    n, eps = read_i64(op + NORM.n), read_f64(op + NORM.eps)
    x, x_out, x_stride = read_i64(op + NORM.x), read_i64(op + NORM.x_out), read_i64(op + NORM.x_stride)
    delta, delta_stride = read_i64(op + NORM.delta), read_i64(op + NORM.delta_stride)
    post_norm, weight = read_i64(op + NORM.post_norm), read_i64(op + NORM.norm)
    act, act_stride = read_i64(op + NORM.act), read_i64(op + NORM.act_stride)
    first, last, shift = share_rows(n_rows, tid, nt)
    for r in range(first, last):
        source = read_i32(read_i64(job + JOB.output_rows) + 4 * r) if read_i64(op + NORM.gather) else r
        old, new = x + (tid if n_tokens == 1 else source) * x_stride, x_out + (r + shift) * x_stride
        if delta != 0:
            d, factor = delta + source * delta_stride, read_f64(op + NORM.residual_scale)
            if post_norm != 0:
                _add_normed(old, d, post_norm, factor * inverse_rms(d, n, eps), n, new)
            else:
                _add_scaled(old, d, factor, n, new)
        else:
            new = old
        row = act + (r + shift) * act_stride
        floats = row + floats_at(n)
        scale_by(new, weight, inverse_rms(new, n, eps), n, floats)
        if read_i64(op + NORM.int8):
            quantize_row(floats, n, row)
    return 0


def quantize(op, job, tid, nt):
    """act = x, quantized where asked."""
    n_rows, n = read_i64(job + read_i64(op + OP.rows)), read_i64(op + QUANTIZE.n)
    x, act, act_stride = read_i64(op + QUANTIZE.x), read_i64(op + QUANTIZE.act), read_i64(op + QUANTIZE.act_stride)
    first, last, shift = share_rows(n_rows, tid, nt)
    for r in range(first, last):
        row, source = act + (r + shift) * act_stride, x + r * read_i64(op + QUANTIZE.x_stride)
        if read_i64(op + QUANTIZE.int8):
            quantize_row(source, n, row)
        else:
            floats = row + floats_at(n)
            for i in range(0, n, 8):  # buffers are padded to whole vectors
                store_f32(floats + 4 * i, load_f32(source + 4 * i))
    return 0


@inline
def _silu(x):
    """x sigmoid(x)."""
    return div(x, add(splat(_ONE), exp(sub(zero(), x))))


@inline
def _gelu(x):
    """x sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)), the tanh form of GELU (Hendrycks and Gimpel, 2016)."""
    inner = mul(x, fma(mul(x, x), splat(np.float32(0.044715)), splat(_ONE)))
    return div(x, add(splat(_ONE), exp(mul(inner, splat(np.float32(-1.5957691216057308))))))


_ACTIVATIONS = {"silu": _silu, "gelu": _gelu}


def make_gate(activation: str) -> Any:
    """gate = activation(gate) * up, each thread on the channels that it has just computed."""
    function = _ACTIVATIONS[activation]

    def gate_up(op, job, tid, nt):
        n_rows, n_runs = read_i64(job + read_i64(op + OP.rows)), read_i64(op + GATE.n_runs)
        gate, up, stride = read_i64(op + GATE.gate), read_i64(op + GATE.up), read_i64(op + GATE.stride)
        for t in range(n_rows):
            for run in range(n_runs * tid // nt, n_runs * (tid + 1) // nt):
                at = t * stride + 32 * run
                store_f32(gate + at, mul(function(load_f32(gate + at)), load_f32(up + at)))
        return 0

    return gate_up


def merge(op, job, tid, nt):
    """act = attention's output, its parts over ranges of positions joined by their softmax sums, quantized where asked.

    With m_s, z_s, o_s the largest score, sum and unscaled output of part s, and M = max m_s:
    out = sum_s e^(m_s - M) o_s / sum_s e^(m_s - M) z_s.
    """
    n_rows, n_splits = read_i64(job + JOB.n_tokens), read_i64(job + JOB.n_splits)
    out, stats, n_heads, d = (
        read_i64(op + MERGE.out),
        read_i64(op + MERGE.stats),
        read_i64(op + MERGE.n_heads),
        read_i64(op + MERGE.head_dim),
    )
    act, act_stride = read_i64(op + MERGE.act), read_i64(op + MERGE.act_stride)
    n = n_heads * d
    first, last, shift = share_rows(n_rows, tid, nt)
    for r in range(first, last):
        row = act + (r + shift) * act_stride
        floats = row + floats_at(n)
        for h in range(n_heads):
            at = r * n_heads + h
            top = read_f32(stats + 8 * at)
            for s in range(1, n_splits):
                top = max(top, read_f32(stats + 8 * (s * n_rows * n_heads + at)))
            total = np.float32(0.0)
            for s in range(n_splits):
                stat = stats + 8 * (s * n_rows * n_heads + at)
                total += np.exp(read_f32(stat) - top) * read_f32(stat + 4)
            for s in range(n_splits):
                part = s * n_rows * n_heads + at
                share, source, target = splat(np.exp(read_f32(stats + 8 * part) - top) / total), out + 4 * part * d, floats + 4 * h * d
                for i in range(0, d, 8):
                    scaled = mul(load_f32(source + 4 * i), share)
                    store_f32(target + 4 * i, scaled if s == 0 else add(load_f32(target + 4 * i), scaled))
        if read_i64(op + MERGE.int8):
            quantize_row(floats, n, row)
    return 0

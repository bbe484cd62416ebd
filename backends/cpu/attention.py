"""Grouped-query attention over a paged KV cache.

A page holds PAGE positions of all layers. Of each layer and KV head it has the keys as [PAGE / 8, head_dim, 8], so that one
vector lane is one position and a score needs no horizontal sum, then the values as [PAGE, head_dim]. K and V are read once
for all query heads of their group.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgelm.backends.cpu.codes import inline
from edgelm.backends.cpu.elementwise import inverse_rms, scale_by
from edgelm.backends.cpu.records import ATTEND, JOB, OP, PAGE, ROTATE
from edgelm.backends.cpu.simd import (
    add,
    div,
    exp,
    fma,
    lane_max,
    lane_sum,
    load_f16,
    load_f32,
    maximum,
    mul,
    prefetch,
    read_f32,
    read_f64,
    read_i32,
    read_i64,
    splat,
    store_f16,
    store_f32,
    sub,
    write_f16,
    write_f32,
    zero,
)

_NOTHING = np.float32(-1e30)  # the score of a position that may not be seen
_ONE = np.float32(1.0)
_AHEAD = PAGE  # positions whose keys are on their way from memory while scores are computed
KV_TYPES = {"f16": (load_f16, store_f16, write_f16, 2), "f32": (load_f32, store_f32, write_f32, 4)}


@inline
def _rotate_head(x, cosines, half, factor):
    """Rotate channels (i, i + half) by the angles whose cosines [half] and sines [half] are given, and multiply by factor."""
    sines = cosines + 4 * half
    for i in range(half):
        a, b = read_f32(x + 4 * i), read_f32(x + 4 * (i + half))
        c, s = read_f32(cosines + 4 * i), read_f32(sines + 4 * i)
        write_f32(x + 4 * i, (a * c - b * s) * factor)
        write_f32(x + 4 * (i + half), (a * s + b * c) * factor)


@inline
def _rotate_head_by_vectors(x, cosines, half, factor):
    """As _rotate_head, for half a multiple of 8."""
    sines, f = cosines + 4 * half, splat(factor)
    for i in range(0, half, 8):
        low, high = x + 4 * i, x + 4 * (i + half)
        a, b, c, s = mul(load_f32(low), f), mul(load_f32(high), f), load_f32(cosines + 4 * i), load_f32(sines + 4 * i)
        store_f32(low, sub(mul(a, c), mul(b, s)))
        store_f32(high, fma(a, s, mul(b, c)))


@inline
def _prepare_head(x, norm, eps, d, cosines, n_dims, factor):
    """Norm the head if it has a norm, rotate its first n_dims channels, multiply all by factor."""
    if norm != 0:
        scale_by(x, norm, inverse_rms(x, d, eps), d, x)
    if n_dims % 16 == 0:
        _rotate_head_by_vectors(x, cosines, n_dims // 2, factor)
    else:
        _rotate_head(x, cosines, n_dims // 2, factor)
    for i in range(n_dims, d):
        write_f32(x + 4 * i, read_f32(x + 4 * i) * factor)


def make_rotate(kv_type: str) -> Any:
    """Norm and rotate q and k, scale q, and write k and v into the cache."""
    _load, store, write, width = KV_TYPES[kv_type]

    def rotate(op, job, tid, nt):
        n_rows, d, n_dims, eps = (
            read_i64(job + read_i64(op + OP.rows)),
            read_i64(op + ROTATE.head_dim),
            read_i64(op + ROTATE.n_dims),
            read_f64(op + ROTATE.eps),
        )
        n_heads, n_kv = read_i64(op + ROTATE.n_heads), read_i64(op + ROTATE.n_kv_heads)
        items = n_rows * (n_heads + n_kv)
        for item in range(items * tid // nt, items * (tid + 1) // nt):
            t, h = item // (n_heads + n_kv), item % (n_heads + n_kv)
            position = read_i32(read_i64(job + JOB.positions) + 4 * t)
            angles = read_i64(op + ROTATE.table) + 4 * n_dims * position
            if h < n_heads:
                q = read_i64(op + ROTATE.q) + t * read_i64(op + ROTATE.q_stride) + 4 * d * h
                _prepare_head(q, read_i64(op + ROTATE.q_norm), eps, d, angles, n_dims, read_f64(op + ROTATE.q_scale))
                continue
            h -= n_heads
            k = read_i64(op + ROTATE.k) + t * read_i64(op + ROTATE.k_stride) + 4 * d * h
            v = read_i64(op + ROTATE.v) + t * read_i64(op + ROTATE.v_stride) + 4 * d * h
            _prepare_head(k, read_i64(op + ROTATE.k_norm), eps, d, angles, n_dims, _ONE)
            slot = position % PAGE
            keys = read_i64(read_i64(job + JOB.pages) + 8 * t) + (read_i64(op + ROTATE.layer) * n_kv + h) * 2 * PAGE * d * width
            values = keys + (PAGE + slot) * d * width
            column = keys + (slot // 8 * d * 8 + slot % 8) * width
            for i in range(d):
                write(column + 8 * i * width, read_f32(k + 4 * i))
            for i in range(0, d, 8):
                store(values + i * width, load_f32(v + 4 * i))
        return 0

    return rotate


@inline
def _softmax(scores, n, low, high, cap):
    """Turn n scores (a multiple of 16) into e^(s - max), 0 outside [low, high); the maximum and the sum."""
    if cap > np.float32(0.0):
        for j in range(0, n, 8):  # cap tanh(s / cap) = cap - 2 cap / (e^(2 s / cap) + 1)
            s = exp(mul(load_f32(scores + 4 * j), splat(np.float32(2.0) / cap)))
            store_f32(scores + 4 * j, sub(splat(cap), div(splat(np.float32(2.0) * cap), add(s, splat(_ONE)))))
    for j in range(0, min(low, n)):
        write_f32(scores + 4 * j, _NOTHING)
    for j in range(max(high, 0), n):
        write_f32(scores + 4 * j, _NOTHING)
    tops = splat(_NOTHING)
    for j in range(0, n, 8):
        tops = maximum(tops, load_f32(scores + 4 * j))
    top, sums = lane_max(tops), zero()
    if top <= _NOTHING:
        for j in range(0, n, 8):
            store_f32(scores + 4 * j, zero())
        return top, np.float32(0.0)
    for j in range(0, n, 8):
        p = exp(sub(load_f32(scores + 4 * j), splat(top)))
        store_f32(scores + 4 * j, p)
        sums = add(sums, p)
    return top, lane_sum(sums)


def make_attend(kv_type: str) -> Any:
    """Softmax(q K^T) V, unscaled, with the largest score and the sum of each row, for tiles of tokens and ranges of positions."""
    load, _store, _write, width = KV_TYPES[kv_type]

    @inline
    def keys_at(table, base, position, d):
        """Address of the keys of 8 positions; their values follow PAGE * d further on."""
        return read_i64(table + 8 * (position // PAGE)) + base + position % PAGE * d * width

    @inline
    def share(op, job, item):
        """An item's tile of tokens, KV head, part, where that head's keys begin in a page, and the positions [start, start + n) of the
        part, in steps of 16: its share of what any token of the tile may see."""
        n_splits, n_kv, window = read_i64(job + JOB.n_splits), read_i64(op + ATTEND.n_kv_heads), read_i64(op + ATTEND.window)
        split, h, tile = item % n_splits, item // n_splits % n_kv, read_i64(job + JOB.tiles) + 32 * (item // n_splits // n_kv)
        base = (read_i64(op + ATTEND.layer) * n_kv + h) * 2 * PAGE * read_i64(op + ATTEND.head_dim) * width
        count, position = read_i64(tile + 8), read_i64(tile + 16)
        begin = max(0, position - window + 1) // 16 * 16 if window > 0 else 0
        steps = (position + count - begin + 15) // 16
        start, n = begin + steps * split // n_splits * 16, (steps * (split + 1) // n_splits - steps * split // n_splits) * 16
        return tile, h, split, base, start, n

    @inline
    def score(q0, q1, q2, q3, keys, d, s0, s1, s2, s3, ahead):
        """Scores of four query rows with 16 positions; meanwhile their values and the keys ahead are fetched."""
        a0, b0, a1, b1, a2, b2, a3, b3 = zero(), zero(), zero(), zero(), zero(), zero(), zero(), zero()
        second = keys + 8 * d * width
        values = keys + PAGE * d * width
        for i in range(d):
            prefetch(values + 16 * i * width)
            prefetch(ahead + 16 * i * width)
            ka, kb = load(keys + 8 * i * width), load(second + 8 * i * width)
            q = splat(read_f32(q0 + 4 * i))
            a0, b0 = fma(q, ka, a0), fma(q, kb, b0)
            q = splat(read_f32(q1 + 4 * i))
            a1, b1 = fma(q, ka, a1), fma(q, kb, b1)
            q = splat(read_f32(q2 + 4 * i))
            a2, b2 = fma(q, ka, a2), fma(q, kb, b2)
            q = splat(read_f32(q3 + 4 * i))
            a3, b3 = fma(q, ka, a3), fma(q, kb, b3)
        store_f32(s0, a0)
        store_f32(s0 + 32, b0)
        store_f32(s1, a1)
        store_f32(s1 + 32, b1)
        store_f32(s2, a2)
        store_f32(s2 + 32, b2)
        store_f32(s3, a3)
        store_f32(s3 + 32, b3)

    @inline
    def weigh(p0, p1, p2, p3, table, base, start, n, d, o0, o1, o2, o3):
        """Sixteen channels of the values of n positions, weighed for four query rows."""
        a0, b0, a1, b1, a2, b2, a3, b3 = zero(), zero(), zero(), zero(), zero(), zero(), zero(), zero()
        j = 0
        while j < n:
            position = start + j
            values = read_i64(table + 8 * (position // PAGE)) + base + (position % PAGE) * d * width
            end = min(n, j + PAGE - position % PAGE)
            while j < end:
                va, vb = load(values), load(values + 8 * width)
                p = splat(read_f32(p0 + 4 * j))
                a0, b0 = fma(p, va, a0), fma(p, vb, b0)
                p = splat(read_f32(p1 + 4 * j))
                a1, b1 = fma(p, va, a1), fma(p, vb, b1)
                p = splat(read_f32(p2 + 4 * j))
                a2, b2 = fma(p, va, a2), fma(p, vb, b2)
                p = splat(read_f32(p3 + 4 * j))
                a3, b3 = fma(p, va, a3), fma(p, vb, b3)
                values += d * width
                j += 1
        store_f32(o0, a0)
        store_f32(o0 + 32, b0)
        store_f32(o1, a1)
        store_f32(o1 + 32, b1)
        store_f32(o2, a2)
        store_f32(o2 + 32, b2)
        store_f32(o3, a3)
        store_f32(o3 + 32, b3)

    def attend(op, job, tid, nt):
        n_tiles, n_splits = read_i64(job + JOB.n_tiles), read_i64(job + JOB.n_splits)
        n_heads, n_kv, d = read_i64(op + ATTEND.n_heads), read_i64(op + ATTEND.n_kv_heads), read_i64(op + ATTEND.head_dim)
        group, window, cap, capacity = (
            n_heads // n_kv,
            read_i64(op + ATTEND.window),
            read_f64(op + ATTEND.softcap),
            read_i64(job + JOB.n_tokens),
        )
        queries, q_stride = read_i64(op + ATTEND.q), read_i64(op + ATTEND.q_stride)
        out, stats = read_i64(op + ATTEND.out), read_i64(op + ATTEND.stats)
        scratch = read_i64(op + ATTEND.scratch) + tid * read_i64(op + ATTEND.scratch_stride)
        n_items = n_tiles * n_kv * n_splits
        for item in range(tid, n_items, nt):
            tile, h, split, base, start, n = share(op, job, item)
            token, count, position, table = read_i64(tile), read_i64(tile + 8), read_i64(tile + 16), read_i64(tile + 24)
            next_tile, _, _, next_base, next_start, _ = share(op, job, min(item + nt, n_items - 1))
            next_table = read_i64(next_tile + 24)
            rows = count * group
            for r in range(0, rows, 4):
                r1, r2, r3 = min(r + 1, rows - 1), min(r + 2, rows - 1), min(r + 3, rows - 1)
                q0 = queries + (token + r // group) * q_stride + (h * group + r % group) * 4 * d
                q1 = queries + (token + r1 // group) * q_stride + (h * group + r1 % group) * 4 * d
                q2 = queries + (token + r2 // group) * q_stride + (h * group + r2 % group) * 4 * d
                q3 = queries + (token + r3 // group) * q_stride + (h * group + r3 % group) * 4 * d
                for j in range(0, n, 16):
                    keys = keys_at(table, base, start + j, d)
                    if j + _AHEAD < n:
                        ahead = keys_at(table, base, start + j + _AHEAD, d)
                    else:
                        ahead = keys_at(next_table, next_base, next_start + j + _AHEAD - n, d)
                    s = scratch + 4 * j
                    score(q0, q1, q2, q3, keys, d, s + 4 * n * r, s + 4 * n * r1, s + 4 * n * r2, s + 4 * n * r3, ahead)
            for r in range(rows):
                seen = position + r // group
                low = max(0, seen - window + 1 - start) if window > 0 else 0
                top, total = _softmax(scratch + 4 * n * r, n, low, seen + 1 - start, cap)
                stat = stats + 8 * ((split * capacity + token + r // group) * n_heads + h * group + r % group)
                write_f32(stat, top)
                write_f32(stat + 4, total)
            for r in range(0, rows, 4):
                r1, r2, r3 = min(r + 1, rows - 1), min(r + 2, rows - 1), min(r + 3, rows - 1)
                head = out + 4 * d * ((split * capacity + token) * n_heads + h * group)
                o0, o1 = head + 4 * d * (r // group * n_heads + r % group), head + 4 * d * (r1 // group * n_heads + r1 % group)
                o2, o3 = head + 4 * d * (r2 // group * n_heads + r2 % group), head + 4 * d * (r3 // group * n_heads + r3 % group)
                p0, p1, p2, p3 = scratch + 4 * n * r, scratch + 4 * n * r1, scratch + 4 * n * r2, scratch + 4 * n * r3
                for i in range(0, d, 16):
                    c = min(i, d - 16)
                    values = base + (PAGE * d + c) * width
                    weigh(p0, p1, p2, p3, table, values, start, n, d, o0 + 4 * c, o1 + 4 * c, o2 + 4 * c, o3 + 4 * c)
        return 0

    return attend

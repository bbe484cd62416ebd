"""The two records that every kernel reads: what an operation is, and what job it is part of.

A record is a run of 8-byte slots. The named tuples hold the byte offset of each slot; numba folds them to constants.
"""

from __future__ import annotations

import struct
from collections import namedtuple
from typing import Any


def _offsets(name: str, fields: str, first: int = 0) -> Any:
    names = fields.split()
    return namedtuple(name, names)(*range(8 * first, 8 * (first + len(names)), 8))


SLOTS = 24
OP_BYTES = 8 * SLOTS

NEVER, ALWAYS, IF_MANY = 0, 1, 2
"""When the team meets after an operation: never; always; only if it had several rows, which the threads then share.

An operation over a single row is done by every thread for itself, into a slot of its own: cheaper than meeting."""

OP = _offsets("Op", "kernel meet rows")
"""Slots that all operations have: address of the kernel, when to meet, offset in JOB of the number of rows."""

EMBED = _offsets("Embed", "table n_columns x x_stride scale", 3)
NORM = _offsets("Norm", "x x_out x_stride delta delta_stride post_norm residual_scale norm n eps act act_stride int8 gather", 3)
QUANTIZE = _offsets("Quantize", "x x_stride n act act_stride int8", 3)
MATMUL = _offsets("Matmul", "weights n_runs n_columns act act_stride out out_stride bias", 3)
GATE = _offsets("Gate", "gate up stride n_runs", 3)
ROTATE = _offsets("Rotate", "q q_stride k k_stride v v_stride n_heads n_kv_heads head_dim table n_dims q_norm k_norm eps q_scale layer", 3)
ATTEND = _offsets("Attend", "q q_stride out stats n_heads n_kv_heads head_dim layer window softcap scratch scratch_stride", 3)
MERGE = _offsets("Merge", "out stats n_heads head_dim act act_stride int8", 3)

JOB = _offsets("Job", "n_tokens n_outputs tokens positions pages tiles n_tiles n_splits output_rows logits logits_stride")
"""One forward pass.

n_tokens, n_outputs: rows of the batch; rows that give logits.
tokens, positions: int32 [n_tokens]. pages: int64 [n_tokens], address of the KV page that holds the token's position.
tiles: int64 [n_tiles, 4], runs of tokens of one sequence: first token, count, position of the first, address of the page table.
n_splits: parts into which attention splits the positions of each tile.
output_rows: int32 [n_outputs], tokens that give logits. logits, logits_stride: where they go, and bytes per row.
"""
JOB_SLOTS = len(JOB)

TEAM = _offsets("Team", "arrived phase call late tape n_ops job")._make((0, 64, 128, 192, 256, 264, 272))
"""What the threads share, hot words on cache lines of their own: arrivals at the barrier and its phase; the call to the present job,
which is CREW times the number of jobs so far plus the number of threads that take part; late arrivals so far; the job."""
TEAM_SLOTS = 35
CREW = 4096

PAGE = 64
"""Positions in one page of the KV cache."""

MAX_SPLITS = 16
"""Parts, at most, into which attention divides the positions that a single token sees."""

TILE_ROWS = 16
"""Query rows (tokens times heads of a group) that attention works on at once, at most, when a tile has several tokens."""


def float_slot(value: float) -> int:
    """A float as the int64 slot that read_f64 reads."""
    return int(struct.unpack("<q", struct.pack("<d", value))[0])

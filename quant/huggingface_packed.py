"""Linear layers stored as small integers in groups, and what GGUF block format holds them without any change of value.

    w[n, k] = scales[n, g] * (codes[n, k] - zeros[n, g])   with g = groups[k]

A block format has one scale for 32 neighbours, so that groups of 64 or 128 neighbours repeat theirs. Where none fits, the values are F32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.quant.block_codes import pack_4_bit_codes, pack_5_bit_codes, pack_8_bit_codes
from edgelm.quant.block_format import Columns
from edgelm.quant.blocks import F32, Q4_0, Q4_1, Q5_0, Q8_0, BlockFormat
from edgelm.quant.model_file import Tensor

_BLOCK = 32
_CHUNK_VALUES = 1 << 21  # unpacked at once, which bounds the temporaries to some tens of megabytes


@dataclass(frozen=True)
class GroupedCodes:
    """The content of a packed layer.

    Attributes:
        shape: (n_out, n_in).
        bits: 4 or 8.
        scales: float32 [n_out, n_groups], finite.
        zeros: int32 [n_out, n_groups]; 0 .. 2^bits - 1.
        groups: intp [n_in]; the group of each column, 0 .. n_groups - 1.
        codes: gives rows start to stop, uint8 [stop - start, n_in], 0 .. 2^bits - 1; start is a multiple of 8.
    """

    shape: tuple[int, int]
    bits: int
    scales: NDArray[np.float32]
    zeros: NDArray[np.int32]
    groups: NDArray[np.intp]
    codes: Callable[[int, int], NDArray[np.uint8]]


@dataclass(frozen=True)
class PackedLayer:
    """A packed layer in a file, its shapes checked; nothing of it is unpacked before it is asked for.

    Attributes:
        name: of the weight that it stands for ("model.layers.0.mlp.up_proj.weight").
        shape: (n_out, n_in).
        read: checks and gives its content.
    """

    name: str
    shape: tuple[int, int]
    read: Callable[[], GroupedCodes]

    def tensor(self) -> Tensor:
        """The layer in the smallest format that holds it exactly, a new copy.

        Raises:
            ModelFileError: a scale is not finite, or a group index is outside the groups.
            UnsupportedModelError: a zero point that programs read in different ways.
        """
        content = self.read()
        block, _ = exact_format(content)
        return Tensor(self.name, self.shape, block, _packed(content, block))

    def note(self) -> str:
        """Why the layer takes more bytes than its codes would; empty where it does not.

        Raises: as tensor.
        """
        return exact_format(self.read())[1]


def exact_format(content: GroupedCodes) -> tuple[BlockFormat, str]:
    """The format that holds every value exactly, and why it is not the one of the codes; empty where it is.

    Codes around the middle zero point are those of Q4_0 and Q8_0. With another zero point z, Q4_1 has d = s and m = -z s, where every m
    must be a float16; otherwise Q5_0 holds s (q - z), which is within -15 .. 15.
    """
    n_in = content.shape[1]
    if n_in % _BLOCK:
        return F32, f"rows of {n_in} values are no whole blocks of {_BLOCK}; kept as float"
    blocks = content.groups.reshape(-1, _BLOCK)
    if (blocks != blocks[:, :1]).any():
        in_order = (np.diff(content.groups) >= 0).all()
        what = f"groups end within blocks of {_BLOCK} columns" if in_order else "act-order groups are spread over the row"
        return F32, f"{what}; kept as float"
    if not _are_float16(content.scales):
        return F32, "scales are not all float16; kept as float"
    if (content.zeros == 1 << (content.bits - 1)).all():
        return (Q4_0 if content.bits == 4 else Q8_0), ""
    if content.bits != 4:
        return F32, f"zero points of {content.bits}-bit codes are not all {1 << (content.bits - 1)}; kept as float"
    if _are_float16(_offsets(content.scales, content.zeros)):
        return Q4_1, ""
    return Q5_0, "zero points times scales are not all float16; kept exactly, in Q5_0"


def _offsets(scales: NDArray[np.float32], zeros: NDArray[np.int32]) -> NDArray[np.float32]:
    return -zeros.astype(np.float32) * scales


def _are_float16(values: NDArray[np.float32]) -> bool:
    with np.errstate(over="ignore"):
        return bool((values.astype(np.float16).astype(np.float32) == values).all())


def _packed(content: GroupedCodes, block: BlockFormat) -> NDArray[np.uint8]:
    """All rows in the format that exact_format names, uint8 [nbytes]."""
    n_out, n_in = content.shape
    data = np.empty((n_out, block.nbytes((n_in,))), np.uint8)
    step = max(8, _CHUNK_VALUES // n_in // 8 * 8)
    for start in range(0, n_out, step):
        stop = min(start + step, n_out)
        rows = _float_rows(content, start, stop) if block is F32 else _block_rows(content, block, start, stop)
        data[start:stop] = np.ascontiguousarray(rows).reshape(stop - start, -1).view(np.uint8)
    return data.reshape(-1)


def _float_rows(content: GroupedCodes, start: int, stop: int) -> NDArray[Any]:
    groups = content.groups
    levels = np.ascontiguousarray(content.codes(start, stop), np.float32) - content.zeros[start:stop, groups].astype(np.float32)
    return levels * content.scales[start:stop, groups]


def _block_rows(content: GroupedCodes, block: BlockFormat, start: int, stop: int) -> NDArray[Any]:
    """Blocks [stop - start, n_in / 32] as the format's structured array."""
    of_block = content.groups[::_BLOCK]
    scales, zeros = content.scales[start:stop, of_block], content.zeros[start:stop, of_block]
    codes = content.codes(start, stop).reshape(-1, _BLOCK)
    blocks = np.empty(scales.size, block.dtype)
    blocks["d"] = scales.reshape(-1)
    for field, items in _FIELDS[block.name](codes, scales.reshape(-1, 1), zeros.reshape(-1, 1)).items():
        blocks[field] = items
    return blocks.reshape(scales.shape)


_FIELDS: Mapping[str, Callable[[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int32]], Columns]] = MappingProxyType(
    {
        "Q4_0": lambda codes, _, __: pack_4_bit_codes(codes),
        "Q4_1": lambda codes, scales, zeros: {"m": _offsets(scales, zeros)[:, 0], **pack_4_bit_codes(codes)},
        "Q5_0": lambda codes, _, zeros: pack_5_bit_codes((codes + (16 - zeros)).astype(np.uint8)),
        "Q8_0": lambda codes, _, __: pack_8_bit_codes(codes),
    }
)

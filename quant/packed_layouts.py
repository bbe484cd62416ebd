"""How AWQ, GPTQ and compressed-tensors checkpoints lay a linear layer [n_out, n_in] out in several tensors.

    AWQ (GEMM)      qweight int32 [n_in, n_out / 8]: bits 4i .. 4i+3 are column 8c + (0, 2, 4, 6, 1, 3, 5, 7)[i]; qzeros likewise
                    [n_groups, n_out / 8]; scales [n_groups, n_out]
    GPTQ            qweight int32 [n_in bits / 32, n_out], qzeros int32 [n_groups, n_out bits / 32], lowest bits first; scales
                    [n_groups, n_out]; g_idx [n_in]; the first version of the format stores zero points less 1
    pack-quantized  weight_packed int32 [n_out, n_in bits / 32], lowest bits first; weight_scale [n_out, n_groups]; weight_zero_point int32
                    [n_out bits / 32, n_groups]; weight_shape [2]; weight_g_idx [n_in]; codes and zero points are stored plus 2^(bits - 1)

Sources: awq/modules/linear/gemm.py and awq/utils/packing_utils.py of AutoAWQ, nn_modules/qlinear of GPTQModel,
compressors/pack_quantized of compressed-tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import ModelFileError, UnsupportedModelError
from edgelm.quant.huggingface_packed import GroupedCodes, PackedLayer
from edgelm.quant.model_file import Tensor

_AWQ_PLACES = np.argsort([0, 2, 4, 6, 1, 3, 5, 7])  # which nibble has column 0, 1, ...
WHOLE_ROW = -1  # as a group size

Groups = Callable[[], NDArray[np.intp]]  # checks the group of each column, and gives it: intp [n_in]


@dataclass(frozen=True)
class Parts:
    """The tensors of one packed layer.

    Attributes:
        layer: "model.layers.0.mlp.up_proj".
        where: the folder, for messages.
        tensors: by what follows the layer's name ("qweight"): floats as Tensor, integers as arrays.
    """

    layer: str
    where: str
    tensors: Mapping[str, Tensor | NDArray[Any]]

    def fail(self, part: str, what: str) -> ModelFileError:
        return ModelFileError(f"{self.where}: the tensor '{self.layer}.{part}' {what}; fetch it again")

    def words(self, part: str, *shape: int | None) -> NDArray[np.uint32]:
        """int32 of this shape, None being any size; as uint32, of which shifts bring in no sign."""
        array = self._checked(part, shape)
        if isinstance(array, Tensor) or array.dtype != np.dtype("<i4"):
            raise self.fail(part, f"has the type {type_name(array)}, not I32")
        return array.view("<u4")

    def integers(self, part: str, *shape: int | None) -> NDArray[Any]:
        array = self._checked(part, shape)
        if isinstance(array, Tensor):
            raise self.fail(part, f"has the type {array.format.name}, not whole numbers")
        return array

    def scales(self, part: str, *shape: int | None) -> Tensor:
        tensor = self._checked(part, shape)
        if not isinstance(tensor, Tensor):
            raise self.fail(part, f"has the type {type_name(tensor)}, not one of floats")
        return tensor

    def _checked(self, part: str, shape: tuple[int | None, ...]) -> Tensor | NDArray[Any]:
        tensor = self.tensors.get(part)
        if tensor is None:
            raise self.fail(part, "is missing")
        fits = len(tensor.shape) == len(shape) and all(
            size and size == (wanted or size) for size, wanted in zip(tensor.shape, shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise self.fail(part, f"has the shape {tuple(tensor.shape)}, not ({wanted})")
        return tensor

    def finite(self, part: str, scales: Tensor) -> NDArray[np.float32]:
        """The values of a tensor of scales, which must be numbers."""
        values = scales.dequantize()
        if not np.isfinite(values).all():
            raise self.fail(part, "has a scale that is infinite or not a number")
        return values

    def groups(self, n_in: int, n_groups: int, group_size: int) -> NDArray[np.intp]:
        """The group of each column where groups are neighbours, intp [n_in]."""
        size = n_in if group_size == WHOLE_ROW else group_size
        if n_groups != -(-n_in // size):
            counts = f"{n_groups} groups, not those of {size} columns in rows of {n_in}"
            raise ModelFileError(f"{self.where}: the layer '{self.layer}' has {counts}; fetch it again")
        return np.arange(n_in) // size

    def listed_groups(self, part: str, indices: NDArray[Any], n_groups: int) -> NDArray[np.intp]:
        """The group of each column as the file lists it, intp [n_in]."""
        if indices.min() < 0 or indices.max() >= n_groups:
            raise self.fail(part, f"has group {indices.min()} to {indices.max()}, where there are 0 to {n_groups - 1}")
        return indices.astype(np.intp)


class Layout(Protocol):
    """One kind of checkpoint.

    Attributes:
        codes: the part by which a packed layer is known.
        others: its other parts.
    """

    @property
    def codes(self) -> str: ...
    @property
    def others(self) -> tuple[str, ...]: ...
    def open(self, parts: Parts) -> PackedLayer:
        """Check the shapes, and give the layer.

        Raises:
            ModelFileError: a part is missing, or has another type or shape than the others call for.
        """
        ...


def type_name(array: Tensor | NDArray[Any]) -> str:
    """The type as safetensors calls it."""
    return array.format.name if isinstance(array, Tensor) else f"{array.dtype.kind.upper()}{8 * array.dtype.itemsize}"


def _unpacked(words: NDArray[np.uint32], bits: int) -> NDArray[np.uint8]:
    """Codes, lowest bits first: uint8 [..., n, 32 / bits] of words [..., n]."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    return (words[..., None] >> shifts & np.uint32((1 << bits) - 1)).astype(np.uint8)


@dataclass(frozen=True)
class AWQ:
    """AutoAWQ's GEMM layout, 4 bits."""

    group_size: int
    codes: ClassVar[str] = "qweight"
    others: ClassVar[tuple[str, ...]] = ("qzeros", "scales")

    def open(self, parts: Parts) -> PackedLayer:
        words = parts.words("qweight", None, None)
        n_in, n_out = words.shape[0], 8 * words.shape[1]
        scales = parts.scales("scales", None, n_out)
        zeros = parts.words("qzeros", scales.shape[0], words.shape[1])
        groups = parts.groups(n_in, scales.shape[0], self.group_size)

        def rows(start: int, stop: int) -> NDArray[np.uint8]:
            return _awq_columns(words[:, start // 8 : -(-stop // 8)])[:, : stop - start].T

        def read() -> GroupedCodes:
            values = parts.finite("scales", scales).T
            return GroupedCodes((n_out, n_in), 4, values, _awq_columns(zeros).T.astype(np.int32), groups, rows)

        return PackedLayer(f"{parts.layer}.weight", (n_out, n_in), read)


def _awq_columns(words: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """uint8 [n, 8 m] of words [n, m]."""
    return _unpacked(words, 4)[..., _AWQ_PLACES].reshape(len(words), -1)


@dataclass(frozen=True)
class GPTQ:
    """AutoGPTQ's and GPTQModel's layout.

    Attributes:
        bits: 4 or 8.
        group_size: columns, or WHOLE_ROW.
        act_order: groups are of columns that matter alike, as g_idx lists them.
        zeros_less_1: zero points are stored less 1, as the first version of the format has them.
    """

    bits: int
    group_size: int
    act_order: bool
    zeros_less_1: bool
    codes: ClassVar[str] = "qweight"
    others: ClassVar[tuple[str, ...]] = ("qzeros", "scales", "g_idx")

    def open(self, parts: Parts) -> PackedLayer:
        per_word = 32 // self.bits
        words = parts.words("qweight", None, None)
        n_in, n_out = words.shape[0] * per_word, words.shape[1]
        scales = parts.scales("scales", None, n_out)
        n_groups = scales.shape[0]
        zeros = parts.words("qzeros", n_groups, -(-n_out // per_word))
        groups = self._groups(parts, n_in, n_groups)

        def rows(start: int, stop: int) -> NDArray[np.uint8]:
            return np.moveaxis(_unpacked(words[:, start:stop], self.bits), 2, 1).reshape(n_in, -1).T

        def read() -> GroupedCodes:
            values = parts.finite("scales", scales).T
            return GroupedCodes((n_out, n_in), self.bits, values, self._zeros(parts, zeros)[:n_out], groups(), rows)

        return PackedLayer(f"{parts.layer}.weight", (n_out, n_in), read)

    def _groups(self, parts: Parts, n_in: int, n_groups: int) -> Groups:
        if self.act_order or "g_idx" in parts.tensors:
            order = parts.integers("g_idx", n_in)
            return lambda: parts.listed_groups("g_idx", order, n_groups)
        neighbours = parts.groups(n_in, n_groups, self.group_size)
        return lambda: neighbours

    def _zeros(self, parts: Parts, words: NDArray[np.uint32]) -> NDArray[np.int32]:
        """int32 [n_out, n_groups]."""
        stored = _unpacked(words, self.bits).reshape(len(words), -1).T.astype(np.int32)
        top = (1 << self.bits) - 1
        if self.zeros_less_1 and (stored == top).any():
            raise UnsupportedModelError(
                f"{parts.where}: '{parts.layer}.qzeros' has {top}, which some programs read as a zero point of 0 and others as {top + 1}; "
                "convert the model to the checkpoint format gptq_v2"
            )
        return stored + int(self.zeros_less_1)


@dataclass(frozen=True)
class Scheme:
    """How compressed-tensors quantized some of the layers.

    Attributes:
        bits: 4 or 8.
        symmetric: there are no zero points.
        group_size: columns, or WHOLE_ROW.
        act_order: groups are of columns that matter alike, as weight_g_idx lists them.
    """

    bits: int
    symmetric: bool
    group_size: int
    act_order: bool

    def fits(self, n_in: int, n_words: int, n_groups: int) -> bool:
        size = n_in if self.group_size == WHOLE_ROW else self.group_size
        return n_words == -(-n_in * self.bits // 32) and n_groups == -(-n_in // size)

    @property
    def needs(self) -> set[str]:
        """The parts that not every scheme has."""
        return ({"weight_g_idx"} if self.act_order else set()) | (set() if self.symmetric else {"weight_zero_point"})


@dataclass(frozen=True)
class CompressedTensors:
    """compressed-tensors' pack-quantized layout; a layer has the first of the schemes that fits its shapes and parts."""

    schemes: tuple[Scheme, ...]
    codes: ClassVar[str] = "weight_packed"
    others: ClassVar[tuple[str, ...]] = ("weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")

    def open(self, parts: Parts) -> PackedLayer:
        words = parts.words("weight_packed", None, None)
        n_out, n_in = (int(size) for size in parts.integers("weight_shape", 2))
        if n_out != words.shape[0] or n_in < 1:
            raise parts.fail("weight_shape", f"says {n_out} rows of {n_in}, where there are {words.shape[0]}")
        scales = parts.scales("weight_scale", n_out, None)
        n_groups = scales.shape[1]
        fitting = [scheme for scheme in self.schemes if scheme.fits(n_in, words.shape[1], n_groups)]
        if not fitting:
            counts = f"{words.shape[1]} words and {n_groups} scales for a row of {n_in}"
            raise parts.fail("weight_packed", f"has {counts}, which no group in config.json calls for")
        scheme = next((scheme for scheme in fitting if scheme.needs <= parts.tensors.keys()), fitting[0])
        zeros = _signed_zeros(parts, scheme, n_out, n_groups)
        groups = self._groups(parts, scheme, n_in, n_groups)

        def rows(start: int, stop: int) -> NDArray[np.uint8]:
            return _unpacked(words[start:stop], scheme.bits).reshape(stop - start, -1)[:, :n_in]

        def read() -> GroupedCodes:
            return GroupedCodes((n_out, n_in), scheme.bits, parts.finite("weight_scale", scales), zeros(), groups(), rows)

        return PackedLayer(f"{parts.layer}.weight", (n_out, n_in), read)

    def _groups(self, parts: Parts, scheme: Scheme, n_in: int, n_groups: int) -> Groups:
        neighbours = parts.groups(n_in, n_groups, scheme.group_size)
        if "weight_g_idx" not in parts.tensors.keys() | scheme.needs:
            return lambda: neighbours
        order = parts.integers("weight_g_idx", n_in)
        # -1 everywhere is the library's mark of an order that was not used.
        return lambda: neighbours if (order == -1).all() else parts.listed_groups("weight_g_idx", order, n_groups)


def _signed_zeros(parts: Parts, scheme: Scheme, n_out: int, n_groups: int) -> Callable[[], NDArray[np.int32]]:
    """Gives int32 [n_out, n_groups]. Older files have the zero points unpacked, as I8, whose 0 is the code 2^(bits - 1)."""
    middle = 1 << (scheme.bits - 1)
    stored = parts.tensors.get("weight_zero_point")
    if stored is None and scheme.symmetric:
        return lambda: np.full((n_out, n_groups), middle, np.int32)
    if stored is not None and stored.shape == (n_out, n_groups) and not isinstance(stored, Tensor) and stored.dtype == np.int8:
        signed = stored
        return lambda: signed.astype(np.int32) + middle
    words = parts.words("weight_zero_point", -(-n_out * scheme.bits // 32), n_groups)
    return lambda: np.moveaxis(_unpacked(words, scheme.bits), 2, 1).reshape(-1, n_groups)[:n_out].astype(np.int32)

"""Importance matrices as llama.cpp keeps them: the mean square of every input of every weight.

The GGUF layout is that of llama.cpp's common/imatrix-loader.cpp: for each weight a tensor NAME.in_sum2 with the sums of squares and
NAME.counts with the number of tokens. The older binary layout (".dat") is read too, for many published files have it.

Full outer products may go along in the same file, which remains one that llama.cpp reads, as it passes tensors of other names over. A
tensor edgelm.outer.I [n_in, n_in] belongs to all weights that the metadata entry of the same name lists: those whose input it is.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import InvalidRequestError, ModelFileError, UnsupportedModelError
from edgelm.quant.blocks import F32
from edgelm.quant.gguf_file import GGUFFile
from edgelm.quant.gguf_header import MAGIC
from edgelm.quant.gguf_writer import MetadataValue, TensorSource, entry, write_gguf
from edgelm.quant.input_statistics import Calibration, InputStatistics
from edgelm.quant.mapped_file import MappedFile
from edgelm.quant.model_file import Tensor

_SQUARES, _COUNTS, _OUTER = ".in_sum2", ".counts", "edgelm.outer."
_LONGEST_NAME = 63  # bytes of a tensor's name that llama.cpp holds
_CHUNK_ROWS = 256


def write_imatrix(path: Path, calibration: Calibration, text_name: str, chunk_size: int = 512, outer: bool = False) -> None:
    """Write an importance matrix that llama-quantize accepts.

    Args:
        text_name: the calibration text's name, which llama-quantize copies into the models it makes.
        chunk_size: tokens in one window of that text.
        outer: keep the outer products too, once for all weights that share a statistics object. llama.cpp would load them, and not use
            them: 4 n_in^2 bytes each.

    Raises:
        InvalidRequestError: nothing to write, a weight's name is too long for the format, or no outer products are there to be kept.
        ModelFileError: the file cannot be written.
    """
    _check_writable(calibration, chunk_size, outer)
    n_tokens = max(statistics.n_tokens for statistics in calibration.values())
    metadata: dict[str, MetadataValue] = {
        "general.type": "imatrix",
        "imatrix.datasets": [text_name],
        "imatrix.chunk_count": n_tokens // chunk_size,
        "imatrix.chunk_size": chunk_size,
    }
    tensors: list[TensorSource] = []
    for name, statistics in sorted(calibration.items()):
        tensors.append(_source(name + _SQUARES, statistics.squares))
        tensors.append(_source(name + _COUNTS, np.array([statistics.n_tokens], np.float32)))
    for index, (names, products) in enumerate(_shared_outers(calibration) if outer else ()):
        metadata[f"{_OUTER}{index}"] = names
        tensors.append(_source(f"{_OUTER}{index}", products))
    write_gguf(path, b"".join(entry(key, value) for key, value in metadata.items()), len(metadata), tensors)


def read_imatrix(path: Path) -> Calibration:
    """Read an importance matrix, GGUF or ".dat".

    Weights that were written with one outer product share one object again; outer products are read-only views of the mapped file, which
    must not change meanwhile. A ".dat" file counts chunks, not tokens: n_tokens is their number, and squares / n_tokens is the mean still.

    Raises:
        ModelFileError: the file is missing, cut short, contradicts itself, or is no importance matrix.
        UnsupportedModelError: it has the inputs of several experts under one name.
    """
    mapped = MappedFile(path)
    try:
        if mapped.data[:4] != MAGIC:
            return _read_dat(mapped)
    finally:
        mapped.close()
    with GGUFFile(path) as file:
        calibration = _read_entries(path, file.tensors)
        if not calibration:
            kind = file.metadata.get("general.type", file.metadata.get("general.architecture", "unknown"))
            raise ModelFileError(f"{path}: no importance matrix, but a GGUF file of the kind {kind!r}; give one that llama-imatrix wrote")
        for tensor in file.tensors.values():
            if tensor.name.startswith(_OUTER):
                calibration |= _with_outer(path, tensor, file.metadata.get(tensor.name), calibration)
    return calibration


# -- writing --------------------------------------------------------------------------------------------------------------------------


def _check_writable(calibration: Calibration, chunk_size: int, outer: bool) -> None:
    if not calibration:
        raise InvalidRequestError("an importance matrix without a single weight says nothing; calibrate with a text first")
    if not 0 < chunk_size < 2**32:
        raise InvalidRequestError(f"windows of {chunk_size} tokens make no sense; give the number that the calibration used")
    for name in calibration:
        if len(name.encode()) + len(_SQUARES) > _LONGEST_NAME:
            raise InvalidRequestError(f"the weight's name {name!r} is longer than the {_LONGEST_NAME - len(_SQUARES)} bytes that fit")
    if outer and all(statistics.outer is None for statistics in calibration.values()):
        raise InvalidRequestError("no outer products were kept at calibration; write the importance matrix without them")


def _shared_outers(calibration: Calibration) -> list[tuple[list[str], NDArray[np.float32]]]:
    """Each outer product with the names of the weights whose input it is."""
    names_by_object: dict[int, list[str]] = {}
    for name, statistics in sorted(calibration.items()):
        names_by_object.setdefault(id(statistics), []).append(name)
    shared = ((names, calibration[names[0]].outer) for names in names_by_object.values())
    return [(names, outer) for names, outer in shared if outer is not None]


def _source(name: str, values: NDArray[np.float32]) -> TensorSource:
    return TensorSource(name, values.shape, F32, _chunks(values))


def _chunks(values: NDArray[np.float32]) -> Callable[[], Iterator[NDArray[np.uint8]]]:
    def chunks() -> Iterator[NDArray[np.uint8]]:
        for start in range(0, len(values), _CHUNK_ROWS):
            yield np.ascontiguousarray(values[start : start + _CHUNK_ROWS], "<f4").view(np.uint8)

    return chunks


# -- reading GGUF ---------------------------------------------------------------------------------------------------------------------


def _read_entries(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, InputStatistics]:
    names = {name.removesuffix(suffix) for name in tensors for suffix in (_SQUARES, _COUNTS) if name.endswith(suffix)}
    return {name: _read_entry(path, name, tensors) for name in sorted(names)}


def _read_entry(path: Path, name: str, tensors: Mapping[str, Tensor]) -> InputStatistics:
    squares, counts = tensors.get(name + _SQUARES), tensors.get(name + _COUNTS)
    if squares is None or counts is None:
        raise ModelFileError(f"{path}: the sums or the counts of {name} are missing; the file is damaged, make it again")
    if squares.format != F32 or counts.format != F32:
        raise ModelFileError(f"{path}: the sums and counts of {name} are not F32; the file is damaged, make it again")
    count = counts.dequantize().reshape(-1)
    if count.size != 1:
        raise UnsupportedModelError(f"{path}: {name} has counts of {count.size} experts; edgelm has no use for those")
    if not np.isfinite(count[0]):
        raise ModelFileError(f"{path}: {name} was seen {count[0]} times; the file is damaged, make it again")
    return _statistics(path, name, round(float(count[0])), _floats(squares).reshape(-1).copy())


def _with_outer(path: Path, tensor: Tensor, names: object, calibration: Calibration) -> dict[str, InputStatistics]:
    """The statistics of the weights that the outer product belongs to, one object for all."""
    if not isinstance(names, list) or not names or not all(name in calibration for name in names):
        raise ModelFileError(f"{path}: {tensor.name} names no weights of this file; the file is damaged, make it again")
    if tensor.format != F32:
        raise ModelFileError(f"{path}: {tensor.name} is not F32; the file is damaged, make it again")
    first = calibration[names[0]]
    for name in names:
        other = calibration[name]
        if other.outer is not None or other.n_tokens != first.n_tokens or not np.array_equal(other.squares, first.squares):
            raise ModelFileError(f"{path}: {tensor.name} cannot belong to both {names[0]} and {name}; the file is damaged, make it again")
    return dict.fromkeys(names, _statistics(path, tensor.name, first.n_tokens, first.squares, _floats(tensor)))


def _floats(tensor: Tensor) -> NDArray[np.float32]:
    """The values of an F32 tensor, a view of the file."""
    return tensor.data.view("<f4").reshape(tensor.shape)


def _statistics(
    path: Path, name: str, n_tokens: int, squares: NDArray[np.float32], outer: NDArray[np.float32] | None = None
) -> InputStatistics:
    try:
        return InputStatistics(n_tokens, squares, outer)
    except InvalidRequestError as error:
        raise ModelFileError(f"{path}: {name}: {error}") from error


# -- reading .dat ---------------------------------------------------------------------------------------------------------------------


def _read_dat(file: MappedFile) -> Calibration:
    """int32 n_entries, then for each: int32 n_bytes and the name, int32 n_chunks, int32 n_in, float32 [n_in] sums.

    A chunk count and the text's name may follow, which are not needed. Sums are those of the means of each chunk.
    """
    data, path, at = file.data, file.path, 0

    def take(n_bytes: int) -> bytes:
        nonlocal at
        if not 0 <= n_bytes <= len(data) - at:
            raise ModelFileError(
                f"{path}: neither an importance matrix in GGUF nor a whole .dat file: {n_bytes} bytes are announced at byte {at} of "
                f"{len(data)}; fetch it again, or give one that llama-imatrix wrote"
            )
        at += n_bytes
        return data[at - n_bytes : at]

    def integer() -> int:
        value: int = struct.unpack("<i", take(4))[0]
        return value

    calibration: dict[str, InputStatistics] = {}
    n_entries = integer()
    for index in range(n_entries):
        name = take(integer()).decode("utf-8", "replace")
        n_chunks, n_in = integer(), integer()
        if not name or name in calibration or n_chunks < 0 or n_in < 1:
            raise ModelFileError(f"{path}: entry {index} of {n_entries} of this .dat file makes no sense; fetch it again")
        sums = np.frombuffer(take(4 * n_in), "<f4").astype(np.float32)
        calibration[name] = _statistics(path, name, max(n_chunks, 1), sums)  # a count of 0 means that the values are means already
    if not calibration:
        raise ModelFileError(
            f"{path}: neither an importance matrix in GGUF nor a .dat file with entries; give one that llama-imatrix wrote"
        )
    return calibration

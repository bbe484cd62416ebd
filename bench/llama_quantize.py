"""llama.cpp's own quantizer as the peer: what `llama-quantize` does, called in the library that llama-cpp-python brings along."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.backends.llamacpp_library import complaints, load_library
from edgelm.errors import InvalidRequestError, ModelFileError
from edgelm.quant.blocks import FORMAT_BY_ID
from edgelm.quant.gguf_file import GGUFFile
from edgelm.quant.imatrix import read_imatrix
from edgelm.quant.input_statistics import Calibration, InputStatistics

_FILE_TYPE = "LLAMA_FTYPE_MOSTLY_"
_ALIASES = {"Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
_TENSOR_TYPES = {block.name: block.type_id for block in FORMAT_BY_ID.values()}


def llama_quantize(
    source: Path,
    target: Path,
    format: str,
    imatrix: Path | Calibration | None = None,
    *,
    pure: bool = False,
    embedding_format: str | None = None,
    output_format: str | None = None,
    tensor_formats: Mapping[str, str] | None = None,
    allow_requantize: bool = False,
    n_threads: int = 1,
) -> None:
    """Quantize a GGUF file as llama-quantize does, to the byte in every tensor. Only the metadata quantize.imatrix.* are not written.

    Args:
        format: as llama-quantize names it ("q4_0", "q4_k_m", ...), in any case. Tensors whose rows the format cannot hold get another,
            chosen by llama.cpp.
        imatrix: an importance matrix, or calibration to be used as one. Weights that it does not name are quantized without.
        pure: every tensor takes the one format; otherwise llama.cpp gives some of them more bits.
        embedding_format: of token_embd.weight ("q8_0"), which wins over all else; None leaves it to llama.cpp.
        output_format: of output.weight, and unless pure of an embedding that is the output layer too; None leaves it to llama.cpp.
        tensor_formats: format by regular expression; the first that is found in a tensor's name counts.
        allow_requantize: take a source that is quantized already.
        n_threads: of the quantizer; the result does not depend on them.

    Raises:
        BackendUnavailableError: llama-cpp-python is not installed, or too old.
        InvalidRequestError: a format that llama.cpp does not know, an importance matrix of another model, target and source are one file.
        ModelFileError, UnsupportedModelError: the source or the importance matrix cannot be read.
        ModelFileError: llama.cpp cannot quantize the source, or the target cannot be written.
    """
    if n_threads < 1:
        raise InvalidRequestError(f"n_threads is {n_threads}; give 1 or more")
    api = load_library()
    params = api.llama_model_quantize_default_params()
    params.nthread, params.ftype, params.pure, params.allow_requantize = n_threads, _file_type(api, format), pure, allow_requantize
    if embedding_format is not None:
        params.token_embedding_type = _tensor_type(embedding_format)
    if output_format is not None:
        params.output_tensor_type = _tensor_type(output_format)
    if tensor_formats:
        params.tt_overrides = _override_array(api, tensor_formats)
    importance: dict[str, NDArray[np.float32]] = {}
    if imatrix is not None:
        importance = _importance(read_imatrix(imatrix) if isinstance(imatrix, Path) else imatrix)
        _check_importance(source, importance)
        params.imatrix = _importance_array(api, importance)
    _check_files(source, target)
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f"{target.name}.") as folder:
            partial = Path(folder) / target.name
            _run(api, source, partial, params)
            partial.replace(target)
    except OSError as error:
        raise ModelFileError(
            f"{target} cannot be written ({error.strerror or error}); free space there, or choose another place"
        ) from error


def _run(api: Any, source: Path, target: Path, params: Any) -> None:
    complaints.clear()
    if api.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params)) != 0:
        reason = complaints.reason()
        if "iostream" in reason:  # all that C++ says when a write fails
            raise ModelFileError(f"{target.name} cannot be written; free space there, or choose another place")
        raise ModelFileError(f"llama.cpp cannot quantize {source} ({reason}); check the file with: edgelm inspect {source}")


def _check_files(source: Path, target: Path) -> None:
    GGUFFile(source).close()
    if target.exists() and target.samefile(source):
        raise InvalidRequestError(f"{target} is the source itself; name another file to write to")


def _check_importance(source: Path, importance: Mapping[str, NDArray[np.float32]]) -> None:
    with GGUFFile(source) as file:
        if importance.keys().isdisjoint(file.tensors):
            raise InvalidRequestError(f"the importance matrix names no weight of {source}; give one that was made with this model")


def _file_type(api: Any, format: str) -> int:
    """llama.cpp's number of a mixture of formats."""
    types = {name.removeprefix(_FILE_TYPE): number for name, number in vars(api).items() if name.startswith(_FILE_TYPE)}
    wanted = format.upper()
    number = types.get(_ALIASES.get(wanted, wanted))
    if number is None:
        raise InvalidRequestError(f"llama.cpp knows no format {format!r}; it knows {', '.join(sorted(types)).lower()}")
    return int(number)


def _tensor_type(format: str) -> int:
    """ggml's number of a block format."""
    type_id = _TENSOR_TYPES.get(format.upper())
    if type_id is None:
        raise InvalidRequestError(f"no tensor has the format {format!r}; give one of {', '.join(_TENSOR_TYPES).lower()}")
    return type_id


def _importance(calibration: Calibration) -> dict[str, NDArray[np.float32]]:
    """Mean squares in float32; ones where nothing was seen (load_imatrix in llama.cpp's tools/quantize/quantize.cpp)."""

    def mean(statistics: InputStatistics) -> NDArray[np.float32]:
        if statistics.n_tokens == 0:
            return np.ones_like(statistics.squares)
        return statistics.squares / np.float32(statistics.n_tokens)

    return {name: mean(statistics) for name, statistics in calibration.items()}


def _importance_array(api: Any, importance: Mapping[str, NDArray[np.float32]]) -> Any:
    """The C array, ended by an entry of zeros; `importance` must outlive it."""
    pointer = ctypes.POINTER(ctypes.c_float)
    entries = [(name.encode(), values.ctypes.data_as(pointer), values.size) for name, values in importance.items()]
    return (api.llama_model_imatrix_data * (len(entries) + 1))(*entries)


def _override_array(api: Any, tensor_formats: Mapping[str, str]) -> Any:
    """The C array of patterns and types, ended by an entry of zeros."""
    overrides = [(pattern.encode(), _tensor_type(format)) for pattern, format in tensor_formats.items()]
    return (api.llama_model_tensor_override * (len(overrides) + 1))(*overrides)

"""The judge's file: a GGUF's weights as float32, with its metadata copied byte for byte.

llama.cpp rounds activations to int8 when weights are quantized, so its own logits on the quantized file are no judge of another engine;
its logits on the same weights in float32 are.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgelm.quant.blocks import F32
from edgelm.quant.gguf_file import GGUFFile
from edgelm.quant.gguf_header import read_header
from edgelm.quant.gguf_writer import TensorSource, write_gguf
from edgelm.quant.model_file import Tensor

_CHUNK_VALUES = 1 << 20


def write_dequantized(source: Path, target: Path) -> None:
    """Write `source` to `target` with every tensor as F32; memory stays at a few megabytes.

    Raises:
        ModelFileError, UnsupportedModelError: the source cannot be read.
        ModelFileError: the target cannot be written.
    """
    with GGUFFile(source) as file, source.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        header = read_header(data, source)
        metadata = data[header.metadata_start : header.metadata_end]
        tensors = [TensorSource(tensor.name, tensor.shape, F32, _float_chunks(tensor)) for tensor in file.tensors.values()]
        write_gguf(target, metadata, header.n_entries, tensors, header.alignment)


def _float_chunks(tensor: Tensor) -> Callable[[], Iterator[NDArray[np.uint8]]]:
    block = tensor.format
    step = _CHUNK_VALUES // block.n_elements * block.n_bytes

    def chunks() -> Iterator[NDArray[np.uint8]]:
        for start in range(0, len(tensor.data), step):
            yield block.dequantize(tensor.data[start : start + step]).view(np.uint8)

    return chunks

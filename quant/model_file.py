"""One view of a model on disk, whatever the container: metadata under GGUF keys, tensors under GGUF names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgelm.quant.blocks import BlockFormat


@dataclass(frozen=True)
class Tensor:
    """A tensor as the file stores it.

    Attributes:
        name: GGUF name ("blk.0.attn_q.weight").
        shape: slowest dimension first: a linear layer is (n_out, n_in), a vector (n,).
        format: block format of the data.
        data: uint8 [format.nbytes(shape)], usually a view into the mapped file.
    """

    name: str
    shape: tuple[int, ...]
    format: BlockFormat
    data: NDArray[np.uint8]

    def dequantize(self) -> NDArray[np.float32]:
        """The values as float32 [*shape], by the format's numpy reference."""
        return self.format.dequantize(self.data).reshape(self.shape)


class ModelFile(Protocol):
    """A model opened for reading.

    metadata: values under GGUF keys; scalars as int, float, bool or str; arrays of numbers as numpy arrays, arrays of strings as list[str].
    tensors: in file order, by GGUF name.
    """

    @property
    def path(self) -> Path: ...
    @property
    def metadata(self) -> Mapping[str, Any]: ...
    @property
    def tensors(self) -> Mapping[str, Tensor]: ...

    def drop_pages(self) -> None:
        """Tell the system that mapped pages read so far need not stay resident."""
        ...

    def close(self) -> None: ...

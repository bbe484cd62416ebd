"""A model file with channels scaled: the same function in other weights, computed when they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgelm.quant.channel_scaling import ChannelScaling
from edgelm.quant.model_file import ModelFile, Tensor


class ScaledFile:
    """A ModelFile over another one, which it closes with itself. Only the factors are kept in memory.

    Args:
        file: the model.
        scalings: what was chosen for its folds, each fold at most once.
    """

    def __init__(self, file: ModelFile, scalings: Iterable[ChannelScaling]) -> None:
        self._file = file
        self.tensors: Mapping[str, Tensor] = _ScaledTensors(file.tensors, scalings)

    @property
    def path(self) -> Path:
        return self._file.path

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self._file.metadata

    def drop_pages(self) -> None:
        self._file.drop_pages()

    def close(self) -> None:
        self._file.close()


class _ScaledTensors(Mapping[str, Tensor]):
    """Tensors by GGUF name: those that a scaling changes in F32, the others as they are."""

    def __init__(self, tensors: Mapping[str, Tensor], scalings: Iterable[ChannelScaling]) -> None:
        self._tensors = tensors
        self._scalings: dict[str, list[ChannelScaling]] = {}
        for scaling in scalings:
            for name in scaling.fold.changes if scaling.alpha else ():
                self._scalings.setdefault(name, []).append(scaling)

    def __len__(self) -> int:
        return len(self._tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        for scaling in self._scalings.get(name, ()):
            tensor = scaling.fold.change(tensor, scaling.factors)
        return tensor

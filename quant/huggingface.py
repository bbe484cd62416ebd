"""A folder as the Hugging Face hub has it, read as if it were the GGUF file that llama.cpp would make of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

from edgelm.errors import ClosedError, EdgeLMError, ModelFileError, UnsupportedModelError
from edgelm.quant.huggingface_config import HuggingFaceConfig
from edgelm.quant.huggingface_quantization import read_layout
from edgelm.quant.huggingface_tensors import ConvertedTensors, join_packed
from edgelm.quant.huggingface_tokenizer import read_tokenizer
from edgelm.quant.json_file import JsonObject
from edgelm.quant.model_file import Tensor
from edgelm.quant.safetensors_file import SafetensorsFile

SINGLE_FILE = "model.safetensors"
INDEX_FILE = f"{SINGLE_FILE}.index.json"


class HuggingFaceFolder:
    """A model in config.json, *.safetensors and the tokenizer's files; a ModelFile.

    Tensors keep their F32, F16 or BF16 data as views into the files, except those whose values or order GGUF changes: these are copied each
    time they are asked for. So are the packed layers of AWQ, GPTQ and compressed-tensors checkpoints, in a block format that holds them
    exactly, or else as F32. The files must not change while they are open.

    Raises:
        ModelFileError: a file is missing, cannot be read, is cut short or contradicts another.
        UnsupportedModelError: a sound folder of a model that edgelm does not read.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        if not self._path.is_dir():
            raise ModelFileError(f"{self._path}: no such folder; check the path, or fetch the model again")
        config_json = JsonObject.read(self._path / "config.json")
        config, layout = HuggingFaceConfig(config_json), read_layout(config_json, self._path)
        names = {"general.type": "model", "general.name": self._path.absolute().name}
        self._metadata = MappingProxyType({**config.metadata, **names, **read_tokenizer(self._path, config_json)})
        self._files: list[SafetensorsFile] = []
        try:
            self._open_files()
            tensors = {name: tensor for file in self._files for name, tensor in file.tensors.items()}
            integers = {name: array for file in self._files for name, array in file.integers.items()}
            sources = join_packed(tensors, integers, layout, str(self._path))
            self._tensors: ConvertedTensors | None = ConvertedTensors(sources, config, str(self._path))
        except EdgeLMError:
            self.close()
            raise

    def __enter__(self) -> HuggingFaceFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def path(self) -> Path:
        return self._path

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Values under GGUF keys; still there after close."""
        return self._metadata

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Tensors by GGUF name.

        Raises:
            ClosedError: the folder was closed.
        """
        if self._tensors is None:
            raise ClosedError(f"{self._path} was closed; open it again")
        return self._tensors

    @property
    def notes(self) -> Mapping[str, str]:
        """Why a packed layer comes in a larger format than it is stored in, by the tensor's GGUF name.

        Raises:
            ClosedError: the folder was closed.
            ModelFileError, UnsupportedModelError: a packed layer makes no sense, or can be read in different ways.
        """
        if self._tensors is None:
            raise ClosedError(f"{self._path} was closed; open it again")
        return self._tensors.notes()

    def drop_pages(self) -> None:
        """Take the pages read so far out of resident memory; the next access reads them again. Linux only, elsewhere without effect.

        Raises:
            ClosedError: the folder was closed.
        """
        for file in self._files:
            file.drop_pages()

    def close(self) -> None:
        """Give the files up; closing twice is allowed. Tensors that a caller still holds stay valid."""
        self._tensors = None
        for file in self._files:
            file.close()

    # -- files ------------------------------------------------------------------------------------------------------------------------

    def _open_files(self) -> None:
        index = self._path / INDEX_FILE
        if (self._path / SINGLE_FILE).exists():
            self._open(SINGLE_FILE)
        elif index.exists():
            self._open_shards(JsonObject.read(index))
        elif any(self._path.glob("*.bin")):
            raise UnsupportedModelError(f"{self._path}: the weights are pickled (*.bin), which is unsafe to read; fetch safetensors")
        else:
            raise ModelFileError(f"{self._path}: neither {SINGLE_FILE} nor {INDEX_FILE} is there; the folder is incomplete, fetch it again")

    def _open(self, name: str) -> set[str]:
        """Open a file, and give the names of what it holds."""
        file = SafetensorsFile(self._path / name)
        self._files.append(file)
        return {*file.tensors, *file.integers}

    def _open_shards(self, index: JsonObject) -> None:
        """Open every shard; the index must name each tensor, in the shard where it is."""
        homes = index.object("weight_map")
        for name in homes.values:
            shard = homes.text(name)
            if Path(shard).name != shard or not shard.endswith(".safetensors"):
                raise homes.fail(name, "the name of a safetensors file in this folder")
        found: set[str] = set()
        for shard in dict.fromkeys(homes.values.values()):
            for name in self._open(shard):
                if homes.values.get(name) != shard:
                    raise ModelFileError(f"{self._path / shard}: the tensor {name!r} is not in the index; fetch the folder again")
                found.add(name)
        for name, shard in homes.values.items():
            if name not in found:
                raise ModelFileError(f"{self._path / shard}: the tensor {name!r} is missing, but in the index; fetch the file again")

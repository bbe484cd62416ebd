from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from edgelm.errors import InvalidRequestError, ModelFileError
from edgelm.quant.blocks import F32, Q4_0
from edgelm.quant.gguf_file import GGUFFile
from edgelm.quant.gguf_writer import TensorSource, entry, write_gguf


def source(name: str, n_rows: int, parts: Sequence[int]) -> TensorSource:
    """A Q4_0 tensor [n_rows, 32] of counting bytes, in chunks of so many bytes."""
    data = np.arange(sum(parts), dtype=np.uint8)
    return TensorSource(name, (n_rows, 32), Q4_0, lambda: np.split(data, np.cumsum(parts)[:-1]))


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    entries = [
        entry("general.architecture", "llama"),
        entry("a.count", 7),
        entry("a.rate", 0.5),
        entry("a.below", -7),
        entry("a.large", 2**63),
        entry("a.flag", True),
        entry("a.words", ["x", "", "Ġyz"]),
        entry("a.numbers", np.array([3, -1], np.int32)),
    ]
    values = np.arange(6, dtype=np.float32)
    vector = TensorSource("vector", (6,), F32, lambda: [values.view(np.uint8)])
    path = tmp_path / "m.gguf"
    write_gguf(path, b"".join(entries), len(entries), [source("matrix", 3, [20, 34]), vector])
    with GGUFFile(path) as file:
        assert {key: value for key, value in file.metadata.items() if key != "a.numbers"} == {
            "general.architecture": "llama",
            "a.count": 7,
            "a.rate": 0.5,
            "a.below": -7,
            "a.large": 2**63,
            "a.flag": True,
            "a.words": ["x", "", "Ġyz"],
        }
        np.testing.assert_array_equal(file.metadata["a.numbers"], [3, -1])
        np.testing.assert_array_equal(file.tensors["matrix"].data, np.arange(54))
        assert file.tensors["matrix"].shape == (3, 32)
        np.testing.assert_array_equal(file.tensors["vector"].dequantize(), values)


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "f4", "?", "u8", "i8", ">f8"])
def test_arrays_of_every_type(tmp_path: Path, dtype: str) -> None:
    write_gguf(tmp_path / "m.gguf", entry("a", np.array([0, 1, 100], dtype)), 1, [])
    with GGUFFile(tmp_path / "m.gguf") as file:
        np.testing.assert_array_equal(file.metadata["a"], np.array([0, 1, 100], dtype))
        assert file.metadata["a"].dtype == np.dtype(dtype).newbyteorder("<")


@pytest.mark.parametrize("value", [None, [1, 2], {"a": 1}, np.zeros((2, 2)), np.zeros(2, np.complex64)])
def test_what_gguf_does_not_hold_is_refused(value: object) -> None:
    with pytest.raises(InvalidRequestError, match=r"metadata value a\.b is a"):
        entry("a.b", value)  # type: ignore[arg-type]


def test_a_file_that_fails_leaves_nothing_and_keeps_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_text("old")
    with pytest.raises(ModelFileError, match="matrix was given 20 bytes, but takes 54"):
        write_gguf(path, b"", 0, [source("matrix", 3, [20])])
    assert [file.name for file in tmp_path.iterdir()] == ["m.gguf"]
    assert path.read_text() == "old"


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="nowhere"):
        write_gguf(tmp_path / "nowhere" / "m.gguf", b"", 0, [])

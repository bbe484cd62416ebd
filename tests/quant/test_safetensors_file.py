from __future__ import annotations

import json
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from edgelm.errors import ClosedError, EdgeLMError, ModelFileError, UnsupportedModelError
from edgelm.quant.safetensors_file import SafetensorsFile


def write(path: Path, header: object, n_bytes: int = 0) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(n_bytes))


def test_values_equal_the_library_s(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    rng = np.random.default_rng(0)
    arrays = {
        "z": rng.standard_normal((3, 5)).astype(np.float32),
        "a": rng.standard_normal((2, 3, 4)).astype(np.float16),
        "m": rng.standard_normal(7).astype(ml_dtypes.bfloat16),
        "empty": np.zeros((0, 4), np.float32),
    }
    save_file(arrays, path, metadata={"format": "pt"})
    official = load_file(path)
    file = SafetensorsFile(path)
    assert set(file.tensors) == set(official)
    for name, tensor in file.tensors.items():
        assert tensor.shape == official[name].shape
        assert tensor.data.tobytes() == official[name].tobytes()
        assert not tensor.data.flags.owndata
    file.drop_pages()
    file.close()
    assert not file.tensors
    with pytest.raises(ClosedError):
        file.drop_pages()


def test_integers_are_arrays_and_no_tensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    values = np.arange(6).reshape(2, 3) * 37 % 100
    arrays = {dtype: (values if dtype == "u1" else values - 50).astype(dtype) for dtype in ("i1", "u1", "i2", "i4", "i8")}
    save_file({**arrays, "weight": np.ones(3, np.float16)}, path)
    file = SafetensorsFile(path)
    assert list(file.tensors) == ["weight"]
    assert set(file.integers) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(file.integers[name], array)
        assert file.integers[name].dtype == array.dtype
        assert not file.integers[name].flags.writeable
    file.close()
    assert not file.integers


def test_other_types_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"codes": np.zeros(4, np.float64)}, path)
    with pytest.raises(UnsupportedModelError, match="'codes' has the type F64; edgelm reads F32, F16, BF16"):
        SafetensorsFile(path)


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BAD_HEADERS = {
    "not an object": ([1], 8),
    "entry is no object": ({"a": 1}, 8),
    "cut short": ({"a": ENTRY}, 7),
    "padded": ({"a": ENTRY}, 9),
    "type and size disagree": ({"a": ENTRY | {"shape": [3]}}, 8),
    "overflowing shape": ({"a": ENTRY | {"shape": [2**40, 2**40]}}, 8),
    "negative size": ({"a": ENTRY | {"shape": [-2]}}, 8),
    "offset outside": ({"a": ENTRY | {"data_offsets": [2**60, 2**60 + 8]}}, 8),
    "offsets reversed": ({"a": ENTRY | {"data_offsets": [8, 0]}}, 8),
    "overlap": ({"a": ENTRY, "b": ENTRY}, 8),
    "gap": ({"a": ENTRY | {"data_offsets": [4, 12]}}, 12),
    "unknown type": ({"a": ENTRY | {"dtype": "Q9"}}, 8),
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_bad_header(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.safetensors"
    write(path, *BAD_HEADERS[name])
    with pytest.raises(ModelFileError, match=r"a\.safetensors: not a sound safetensors file .*; fetch it again"):
        SafetensorsFile(path)


@pytest.mark.parametrize("content", [b"GGUF", b"\xff" * 64, struct.pack("<Q", 2**63) + b"{}", struct.pack("<Q", 3) + b"{}"])
def test_not_safetensors(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match="not a sound safetensors file"):
        SafetensorsFile(path)


@settings(max_examples=200, deadline=None)
@given(
    shape=st.lists(st.integers(-1, 2**64), max_size=5),
    offsets=st.lists(st.integers(0, 40) | st.integers(0, 2**64), min_size=2, max_size=2),
    dtype=st.sampled_from(["F32", "BF16", "F8_E4M3", "I64", "F4", ""]),
    n_bytes=st.integers(0, 40),
)
def test_any_entry_gives_a_clear_error_or_a_tensor(
    tmp_path_factory: pytest.TempPathFactory, shape: list[int], offsets: list[int], dtype: str, n_bytes: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    write(path, {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}, n_bytes)
    try:
        file = SafetensorsFile(path)
    except EdgeLMError:
        return
    assert (file.integers["a"].nbytes if dtype == "I64" else file.tensors["a"].data.size) == n_bytes

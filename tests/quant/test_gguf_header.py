"""The header reader against the gguf package, and against files that are wrong in one place."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from edgelm.errors import EdgeLMError, ModelFileError, UnsupportedModelError
from edgelm.quant.blocks import FORMATS
from edgelm.quant.gguf_header import DEFAULT_ALIGNMENT, FOREIGN_TYPES, MAGIC, MAX_DIMS, SCALAR_TYPES, VERSIONS, read_header

PATH = Path("model.gguf")
SCALARS = {
    "uint8": 200,
    "int8": -100,
    "uint16": 60000,
    "int16": -30000,
    "uint32": 4_000_000_000,
    "int32": -2_000_000_000,
    "uint64": 2**64 - 1,
    "int64": -(2**63),
    "float32": 0.5,
    "float64": 0.1,
    "bool": True,
    "string": "caf\u00e9 \u4f60\u597d",
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file with every value type and several tensor formats, written by the gguf package."""
    path = tmp_path_factory.mktemp("gguf") / "sound.gguf"
    writer = GGUFWriter(path, "llama")
    for kind, value in SCALARS.items():
        getattr(writer, f"add_{kind}")(f"test.{kind}", value)
    writer.add_array("test.ints", [-1, 2, 3])
    writer.add_array("test.floats", [0.5, 1.5])
    writer.add_array("test.bools", [True, False])
    writer.add_array("test.strings", ["one", "", "\U0001f926\u200d\u2642\ufe0f"])
    writer.add_key_value("test.bytes", [1, 2, 255], GGUFValueType.ARRAY, sub_type=GGUFValueType.UINT8)
    rng = np.random.default_rng(0)
    writer.add_tensor("vector", rng.standard_normal(7).astype(np.float32))
    for name in ("Q4_0", "Q8_0", "Q6_K"):
        blocks = FORMATS[name].quantize(rng.standard_normal((3, 256)).astype(np.float32)).reshape(3, -1)
        writer.add_tensor(f"matrix.{name}", blocks, raw_dtype=GGMLQuantizationType[name])
    writer.add_tensor("cube", rng.standard_normal((2, 3, 5)).astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


# -- files built by hand, to be wrong on purpose ---------------------------------------------------------------------------------------


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str | bytes, type_id: int, payload: bytes) -> bytes:
    return text(key) + struct.pack("<I", type_id) + payload


def array(key: str, item_type: int, count: int, payload: bytes) -> bytes:
    return entry(key, 9, struct.pack("<IQ", item_type, count) + payload)


def tensor(name: str | bytes, dims: tuple[int, ...], type_id: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims) + struct.pack("<IQ", type_id, offset)


def build(
    entries: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    data: bytes = b"",
    *,
    magic: bytes = MAGIC,
    version: int = 3,
    n_tensors: int | None = None,
    n_entries: int | None = None,
    alignment: int = 32,
) -> bytes:
    counts = (len(tensors) if n_tensors is None else n_tensors, len(entries) if n_entries is None else n_entries)
    header = magic + struct.pack("<IQQ", version, *counts) + b"".join(entries) + b"".join(tensors)
    return header + b"\0" * (-len(header) % alignment) + data


def test_constants_agree_with_gguf() -> None:
    assert struct.pack("<I", gguf.GGUF_MAGIC) == MAGIC
    assert VERSIONS[-1] == gguf.GGUF_VERSION
    assert gguf.GGUF_DEFAULT_ALIGNMENT == DEFAULT_ALIGNMENT
    assert MAX_DIMS == 4
    assert {*SCALAR_TYPES, GGUFValueType.STRING, GGUFValueType.ARRAY} == set(GGUFValueType)
    assert all(str(SCALAR_TYPES[kind]) == kind.name.lower() for kind in GGUFValueType if kind in SCALAR_TYPES)


def test_every_tensor_type_has_its_gguf_name() -> None:
    names = {**FOREIGN_TYPES, **{f.type_id: f.name for f in FORMATS.values()}}
    assert {kind.value: kind.name for kind in GGMLQuantizationType}.items() <= names.items()


def test_reads_what_gguf_wrote(sound: bytes, tmp_path: Path) -> None:
    header = read_header(sound, PATH)
    assert header.version == 3
    for kind, value in SCALARS.items():
        assert header.metadata[f"test.{kind}"] == value
        assert type(header.metadata[f"test.{kind}"]) is type(value)
    np.testing.assert_array_equal(header.metadata["test.ints"], np.array([-1, 2, 3]))
    np.testing.assert_array_equal(header.metadata["test.floats"], np.array([0.5, 1.5], np.float32))
    np.testing.assert_array_equal(header.metadata["test.bytes"], np.array([1, 2, 255], np.uint8))
    np.testing.assert_array_equal(header.metadata["test.bools"], np.array([True, False]))
    assert header.metadata["test.bools"].dtype == np.bool_
    # Copies: a view would keep the file mapped.
    assert all(value.flags.owndata for value in header.metadata.values() if isinstance(value, np.ndarray))
    assert header.metadata["test.strings"] == ["one", "", "\U0001f926\u200d\u2642\ufe0f"]

    (tmp_path / "sound.gguf").write_bytes(sound)
    official = gguf.GGUFReader(tmp_path / "sound.gguf")
    assert [t.name for t in header.tensors] == [t.name for t in official.tensors]
    for ours, theirs in zip(header.tensors, official.tensors, strict=True):
        assert ours.shape == tuple(int(n) for n in theirs.shape[::-1])
        assert (ours.offset, ours.n_bytes, ours.format.name) == (theirs.data_offset, theirs.n_bytes, theirs.tensor_type.name)


def test_invalid_utf8_keeps_its_bytes() -> None:
    header = read_header(build((array("tokens", 8, 1, text(b"\xff\xfe<")), entry(b"k\x80", 4, b"\1\0\0\0"))), PATH)
    assert header.metadata["tokens"][0].encode("utf-8", "surrogateescape") == b"\xff\xfe<"
    assert header.metadata[b"k\x80".decode("utf-8", "surrogateescape")] == 1


def test_version_2_and_files_without_tensors_are_read() -> None:
    header = read_header(build((entry("a", 10, struct.pack("<Q", 5)),), version=2), PATH)
    assert (header.version, header.metadata["a"], header.tensors) == (2, 5, ())
    assert read_header(build((entry("a", 0, b"\1"),)).rstrip(b"\0"), PATH).metadata == {"a": 1}


@pytest.mark.parametrize(
    "value", [array("a", 8, 1, text("xyz")), array("a", 1, 3, b"xyz"), entry("a", 8, text("xyz")), entry("a", 0, b"x")]
)
def test_a_value_may_end_with_the_file_but_not_after_it(value: bytes) -> None:
    data = MAGIC + struct.pack("<IQQ", 3, 0, 1) + value
    assert "a" in read_header(data, PATH).metadata
    with pytest.raises(ModelFileError):
        read_header(data[:-1], PATH)


def test_larger_alignment_and_missing_final_padding_are_accepted() -> None:
    alignment = entry("general.alignment", 4, struct.pack("<I", 64))
    rows = (tensor("a", (3,)), tensor("b", (5,), offset=64))
    data = build((alignment,), rows, bytes(12 + 52) + bytes(20), alignment=64)
    assert [t.offset % 64 for t in read_header(data, PATH).tensors] == [0, 0]
    assert len(read_header(data + bytes(44), PATH).tensors) == 2
    with pytest.raises(ModelFileError, match="45 bytes follow"):
        read_header(data + bytes(45), PATH)


F32_ROW = bytes(4 * 8)
BAD_FILES: dict[str, tuple[bytes, type[EdgeLMError], str]] = {
    "magic": (build(magic=b"GGML"), ModelFileError, "not a GGUF file"),
    "only a magic": (b"GGUF", ModelFileError, "ends after 4 bytes"),
    "shorter than a magic": (b"GG", ModelFileError, "not a GGUF file"),
    "version 0": (build(version=0), UnsupportedModelError, "version 0"),
    "version 1": (build(version=1), UnsupportedModelError, "version 1"),
    "version 4": (build(version=4), UnsupportedModelError, "version 4"),
    "big-endian": (build(version=0x03000000), UnsupportedModelError, "big-endian"),
    "too many entries": (build(n_entries=2**63), ModelFileError, "declares 9223372036854775808 metadata entries"),
    "too many tensors": (build(n_tensors=2**64 - 1), ModelFileError, "declares 18446744073709551615 tensors"),
    "one entry too many": (build((entry("a", 0, b"\1"),), n_entries=2), ModelFileError, "a metadata key has 0 bytes"),
    "empty tensor name": (build((), (tensor("", (8,)),), F32_ROW), ModelFileError, "a tensor name has 0 bytes"),
    "long key": (build((entry("k" * 70000, 0, b"\1"),)), ModelFileError, "70000 bytes"),
    "endless key": (build((struct.pack("<Q", 2**64 - 1) + bytes(64),)), ModelFileError, "18446744073709551615 bytes"),
    "endless string": (build((entry("a", 8, struct.pack("<Q", 2**63 - 1) + bytes(64)),)), ModelFileError, "cut short"),
    "key twice": (build((entry("a", 0, b"\1"), entry("a", 0, b"\1"))), ModelFileError, "'a' comes twice"),
    "value type": (build((entry("a", 13, bytes(64)),)), ModelFileError, "the type 13"),
    "array item type": (build((array("a", 99, 1, bytes(64)),)), ModelFileError, "array of the type 99"),
    "array of arrays": (build((array("a", 9, 1, bytes(64)),)), UnsupportedModelError, "array of arrays"),
    "huge number array": (build((array("a", 12, 2**61, bytes(64)),)), ModelFileError, "declares 2305843009213693952 values"),
    "huge string array": (build((array("a", 8, 2**60, bytes(64)),)), ModelFileError, "declares 1152921504606846976 strings"),
    "string array cut short": (build((array("a", 8, 2, text("x") + struct.pack("<Q", 10**6)),)), ModelFileError, "cut short"),
    "truth value": (build((entry("a", 7, b"\2"),)), ModelFileError, "neither 0 nor 1"),
    "truth values": (build((array("a", 7, 3, b"\1\0\7"),)), ModelFileError, "neither 0 nor 1"),
    "split": (build((entry("split.count", 2, b"\3\0"),)), UnsupportedModelError, "split into 3 files"),
    "alignment 0": (build((entry("general.alignment", 4, bytes(4)),)), ModelFileError, "general.alignment is 0"),
    "alignment 48": (build((entry("general.alignment", 4, b"\x30\0\0\0"),)), ModelFileError, "general.alignment is 48"),
    "alignment of a wrong type": (build((entry("general.alignment", 8, text("32")),)), ModelFileError, "general.alignment is '32'"),
    "tensor twice": (
        build((), (tensor("a", (8,)), tensor("a", (8,), offset=32)), 2 * F32_ROW),
        ModelFileError,
        "'a' comes twice",
    ),
    "long tensor name": (build((), (tensor("a" * 65, (8,)),), F32_ROW), ModelFileError, "65 bytes"),
    "no dimension": (build((), (tensor("a", ()), bytes(64))), ModelFileError, "0 dimensions"),
    "five dimensions": (build((), (tensor("a", (1, 1, 1, 1, 1)),), F32_ROW), ModelFileError, "5 dimensions"),
    "zero dimension": (build((), (tensor("a", (8, 0)),), F32_ROW), ModelFileError, r"shape \(0, 8\)"),
    "overflowing dimensions": (build((), (tensor("a", (2**63, 2**63, 2**63, 2**63)),), F32_ROW), ModelFileError, "cut short"),
    "dimensions that wrap to 8": (build((), (tensor("a", (2**61 + 1, 8)),), F32_ROW), ModelFileError, "cut short"),
    "foreign type": (build((), (tensor("a", (256,), 10),), bytes(96)), UnsupportedModelError, "type Q2_K"),
    "unknown type": (build((), (tensor("a", (8,), 1000),), F32_ROW), UnsupportedModelError, "type number 1000"),
    "type and size disagree": (build((), (tensor("a", (8,), 2),), F32_ROW), ModelFileError, "rows of 8 values.*Q4_0"),
    "misaligned": (build((), (tensor("a", (8,), offset=4),), bytes(64)), ModelFileError, "offset 4, but its place is 0"),
    "overlap": (build((), (tensor("a", (8,)), tensor("b", (8,))), 2 * F32_ROW), ModelFileError, "'b'.*offset 0, but its place is 32"),
    "gap": (build((), (tensor("a", (8,)), tensor("b", (8,), offset=64)), 3 * F32_ROW), ModelFileError, "its place is 32"),
    "offset outside": (build((), (tensor("a", (8,), offset=2**64 - 32),), F32_ROW), ModelFileError, "its place is 0"),
    "data cut short": (build((), (tensor("a", (8,)),), F32_ROW[:-1]), ModelFileError, "cut short"),
    "padded": (build((), (tensor("a", (8,)),), F32_ROW + b"\0"), ModelFileError, "1 bytes follow the last tensor"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file(name: str) -> None:
    data, kind, message = BAD_FILES[name]
    with pytest.raises(kind, match=message) as caught:
        read_header(data, PATH)
    assert str(caught.value).startswith("model.gguf: ")
    assert (
        "fetch" in str(caught.value) or "convert" in str(caught.value) or isinstance(caught.value, UnsupportedModelError | ModelFileError)
    )


def test_every_truncation_is_noticed(sound: bytes) -> None:
    end = read_header(sound, PATH).tensors[-1]
    for n_bytes in (*range(0, 1200, 3), *range(1200, end.offset + end.n_bytes, 97), end.offset + end.n_bytes - 1):
        with pytest.raises(EdgeLMError):
            read_header(sound[:n_bytes], PATH)


# -- fuzzing ---------------------------------------------------------------------------------------------------------------------------

WIDTHS = {"B": 1, "<I": 4, "<Q": 8}
NASTY = st.one_of(st.sampled_from([0, 1, 2**31 - 1, 2**32 - 1, 2**61, 2**63 - 1, 2**63, 2**64 - 1]), st.integers(0, 2**64 - 1))


@st.composite
def mutations(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """One way to damage a file, aimed mostly at its header."""
    place, kind = draw(st.integers(0, 2000)), draw(st.sampled_from(["flip", "cut", "insert", "remove", *WIDTHS]))
    number, raw = draw(NASTY), draw(st.binary(min_size=1, max_size=40))

    def damage(data: bytes) -> bytes:
        at = place % max(len(data), 1)
        if kind == "flip":
            return data[:at] + bytes([data[at] ^ (1 << number % 8)]) + data[at + 1 :] if data else data
        if kind == "cut":
            return data[:at]
        if kind == "insert":
            return data[:at] + raw + data[at:]
        if kind == "remove":
            return data[:at] + data[at + len(raw) :]
        width = WIDTHS[kind]
        return data[:at] + struct.pack(kind, number % 256**width) + data[at + width :]

    return damage


def read_within_memory(data: bytes) -> Any:
    """read_header, checking that it allocates no more than a small multiple of the file."""
    tracemalloc.start()
    try:
        return read_header(data, PATH)
    except EdgeLMError:
        return None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 200_000 + 40 * len(data)


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damages=st.lists(mutations(), min_size=1, max_size=4))
def test_a_damaged_file_gives_a_clear_error_or_a_consistent_header(sound: bytes, damages: list[Callable[[bytes], bytes]]) -> None:
    data = sound
    for damage in damages:
        data = damage(data)
    header = read_within_memory(data)
    for info in header.tensors if header else ():
        assert 0 < info.offset < info.offset + info.n_bytes <= len(data)
        assert info.n_bytes == info.format.nbytes(info.shape)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 20), st.integers(0, 20))
@example(b"", 0, 0)
def test_noise_behind_a_sound_start_gives_a_clear_error_or_a_header(noise: bytes, n_tensors: int, n_entries: int) -> None:
    read_within_memory(MAGIC + struct.pack("<IQQ", 3, n_tensors, n_entries) + noise)

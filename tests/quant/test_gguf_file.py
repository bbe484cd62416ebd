from __future__ import annotations

import gc
import os
import stat
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import psutil
import pytest
from gguf import GGUFWriter

from edgelm.errors import ClosedError, ModelFileError
from edgelm.quant.blocks import F16, F32
from edgelm.quant.gguf_file import GGUFFile


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.arange(40, dtype=np.float16).reshape(5, 8))
    writer.add_tensor("output_norm.weight", np.arange(8, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_tensors_and_metadata(small: Path) -> None:
    with GGUFFile(small) as model:
        assert model.path == small
        assert model.metadata["llama.block_count"] == 1
        assert list(model.tensors) == ["token_embd.weight", "output_norm.weight"]
        embedding, norm = model.tensors.values()
        assert (embedding.shape, embedding.format, norm.shape, norm.format) == ((5, 8), F16, (8,), F32)
        np.testing.assert_array_equal(embedding.dequantize(), np.arange(40, dtype=np.float32).reshape(5, 8))
        np.testing.assert_array_equal(norm.dequantize(), np.arange(8))


def test_tensors_are_views_that_cannot_be_written(small: Path) -> None:
    with GGUFFile(str(small)) as model:
        data = model.tensors["output_norm.weight"].data
        assert not data.flags.owndata
        with pytest.raises(ValueError, match="read-only"):
            data[0] = 1


def test_a_view_outlives_close(small: Path) -> None:
    model = GGUFFile(small)
    norm = model.tensors["output_norm.weight"]
    model.close()
    model.close()
    np.testing.assert_array_equal(norm.dequantize(), np.arange(8))


def test_after_close(small: Path) -> None:
    model = GGUFFile(small)
    model.close()
    assert model.metadata["llama.block_count"] == 1
    with pytest.raises(ClosedError, match=r"small\.gguf was closed"):
        _ = model.tensors
    with pytest.raises(ClosedError):
        model.drop_pages()


@pytest.mark.skipif(sys.platform != "linux", reason="mappings are listed in /proc on Linux only")
def test_the_mapping_goes_with_the_last_view(small: Path) -> None:
    def mapped() -> bool:
        return str(small) in Path("/proc/self/maps").read_text()

    model = GGUFFile(small)
    norm = model.tensors["output_norm.weight"]
    model.close()
    assert mapped()
    del norm
    gc.collect()
    assert not mapped()


@pytest.mark.skipif(sys.platform != "linux", reason="pages are dropped on Linux only")
def test_drop_pages_lowers_resident_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_tensor("a", np.ones((8192, 1024), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GGUFFile(path) as model:
        data = model.tensors["a"].data
        total = int(data.sum(dtype=np.uint64))
        before = psutil.Process().memory_info().rss
        model.drop_pages()
        assert before - psutil.Process().memory_info().rss > 24 << 20
        assert int(data.sum(dtype=np.uint64)) == total


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"absent\.gguf: no such file; check the path"):
        GGUFFile(tmp_path / "absent.gguf")


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="this is a folder"):
        GGUFFile(tmp_path)


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(ModelFileError, match="the file is empty"):
        GGUFFile(tmp_path / "empty.gguf")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits the address space reliably")
def test_no_room_for_the_mapping(tmp_path: Path) -> None:
    file = tmp_path / "sparse.gguf"
    with file.open("wb") as sink:
        sink.truncate(8 << 30)
    script = (
        "import resource, sys; from pathlib import Path; from edgelm.quant.mapped_file import MappedFile\n"
        "resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30)); MappedFile(Path(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(file)], capture_output=True, text=True, timeout=60, check=False)
    assert "InsufficientMemoryError" in done.stderr.splitlines()[-1]


def test_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(ModelFileError, match="not a regular file"):
        GGUFFile(tmp_path / "pipe.gguf")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read every file")
def test_forbidden_file(small: Path) -> None:
    small.chmod(0)
    with pytest.raises(ModelFileError, match="no permission"):
        GGUFFile(small)
    small.chmod(stat.S_IRUSR)


def test_a_path_that_no_system_accepts() -> None:
    with pytest.raises(ModelFileError):
        GGUFFile("nul\0byte.gguf")


@pytest.mark.skipif(sys.platform != "linux", reason="mappings are listed in /proc on Linux only")
def test_a_bad_file_is_not_left_mapped(small: Path) -> None:
    small.write_bytes(small.read_bytes()[:-40])
    with pytest.raises(ModelFileError, match=r"small\.gguf: the file ends after"):
        GGUFFile(small)
    gc.collect()
    assert str(small) not in Path("/proc/self/maps").read_text()


def test_real_file_equals_the_gguf_package(smollm2_path: Path) -> None:
    official = gguf.GGUFReader(smollm2_path)
    with GGUFFile(smollm2_path) as model:
        for key, field in official.fields.items():
            if key.startswith("GGUF."):
                continue
            theirs, ours = field.contents(), model.metadata[key]
            assert (ours.tolist() if isinstance(ours, np.ndarray) else ours) == theirs
        assert list(model.tensors) == [t.name for t in official.tensors]
        for theirs in official.tensors:
            ours = model.tensors[theirs.name]
            assert ours.format.name == theirs.tensor_type.name
            np.testing.assert_array_equal(ours.data, theirs.data.view(np.uint8).reshape(-1))


def test_large_vocabulary(gemma3_path: Path) -> None:
    with GGUFFile(gemma3_path) as model:
        tokens = model.metadata["tokenizer.ggml.tokens"]
        assert len(tokens) == len(model.metadata["tokenizer.ggml.scores"]) == 262144
        assert model.metadata["tokenizer.ggml.token_type"].dtype == np.int32
        assert tokens[:4] == ["<pad>", "<eos>", "<bos>", "<unk>"]
        assert {t.format.name for t in model.tensors.values()} == {"F32", "Q4_K", "Q5_0", "Q6_K", "Q8_0"}

"""The llama.cpp engine against the numpy reference, and what is its own: a KV cache that grows, options, llama.cpp's failures."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_folders import CLASSES, write_folder
from tiny_models import FORMATS, VARIANTS, write_tiny, write_variant

from edgelm.backends.base import Chunk, Outputs
from edgelm.backends.cpu.engine import CPUBackend
from edgelm.backends.llamacpp import LlamaCppBackend, LlamaCppOptions
from edgelm.backends.reference import ReferenceModel
from edgelm.errors import (
    BackendUnavailableError,
    ClosedError,
    InsufficientMemoryError,
    InvalidRequestError,
    ModelFileError,
    UnsupportedModelError,
)
from edgelm.quant.exported_folder import ExportedFolder, GraphFile, Manifest, write_manifest, write_metadata
from edgelm.quant.gguf_file import GGUFFile
from edgelm.quant.huggingface import HuggingFaceFolder

TOKENS = np.random.default_rng(5).integers(0, 288, 250).astype(np.int32)
HALF_GELU = 2e-3  # llama.cpp looks Gemma's GELU up in a table of float16
Open = Callable[..., LlamaCppBackend]


@pytest.fixture
def open_model() -> Iterator[Open]:
    opened: list[LlamaCppBackend] = []

    def open_one(path: Path, *, precision: str | None = "f32", n_ctx: int | None = 250, **options: object) -> LlamaCppBackend:
        wanted = LlamaCppOptions(**options)  # type: ignore[arg-type]
        opened.append(LlamaCppBackend(GGUFFile(path), n_threads=1, n_ctx=n_ctx, precision=precision, options=wanted))
        return opened[-1]

    yield open_one
    for backend in opened:
        backend.close()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_variant(tmp_path_factory.mktemp("model") / "llama.gguf", "llama")


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_variant(tmp_path_factory.mktemp("model") / "gemma.gguf", "gemma3")


def forward(backend: LlamaCppBackend, sequence: int, tokens: NDArray[np.int32], outputs: Outputs = Outputs.LAST) -> NDArray[np.float32]:
    return backend.forward([Chunk(sequence, tokens, outputs)])


def relative_difference(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def tolerance(variant: str) -> float:
    return HALF_GELU if variant.startswith("gemma") else 1e-5


# -- what it computes --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_prefill_decode_and_hidden_states_equal_the_reference(variant: str, tmp_path: Path, open_model: Open) -> None:
    path = write_variant(tmp_path / "model.gguf", variant)
    reference = ReferenceModel(GGUFFile(path), n_ctx=250)
    wanted, backend = reference.logits(TOKENS[:100]), open_model(path)
    assert relative_difference(forward(backend, 0, TOKENS[:100], Outputs.ALL), wanted) < tolerance(variant)
    rows = [forward(backend, 1, TOKENS[i : i + 1]) for i in range(20)]
    assert relative_difference(np.concatenate(rows), wanted[:20]) < tolerance(variant)
    states = backend.hidden([Chunk(2, TOKENS[:100], Outputs.ALL)])
    assert relative_difference(states, reference.hidden(TOKENS[:100])) < tolerance(variant)


@pytest.mark.parametrize("format_name", FORMATS)
def test_every_format_is_computed_as_the_file_says(format_name: str, tmp_path: Path, open_model: Open) -> None:
    path = write_tiny(tmp_path / "model.gguf", "llama", format=format_name, embedding_format=format_name)
    backend = open_model(path, precision=None)
    wanted = ReferenceModel(GGUFFile(path)).logits(TOKENS[:50])
    assert relative_difference(forward(backend, 0, TOKENS[:50], Outputs.ALL), wanted) < 0.05
    assert backend.info.precision == ("f32" if format_name in ("F32", "F16", "BF16") else "int8")


def test_hidden_states_are_the_cpu_engines_and_leave_logits_as_they_are(llama: Path, open_model: Open) -> None:
    backend, other = open_model(llama, n_batch=16), CPUBackend(GGUFFile(llama), n_threads=1, precision="f32")
    batch = [
        Chunk(1, TOKENS[:40], Outputs.LAST),
        Chunk(2, TOKENS[40:60], Outputs.NONE),
        Chunk(3, TOKENS[60:100], Outputs.ALL),
        Chunk(4, TOKENS[100:101]),
    ]
    assert relative_difference(backend.hidden(batch), other.hidden(batch)) < 1e-4
    following = [Chunk(sequence, TOKENS[sequence : sequence + 3]) for sequence in (1, 2, 3, 4)]
    assert relative_difference(backend.forward(following), other.forward(following)) < 1e-4
    assert [backend.length(sequence) for sequence in (1, 2, 3, 4)] == [43, 23, 43, 4]
    other.close()


@pytest.mark.parametrize("n_batch", [1, 7, 64])
def test_where_a_prompt_is_cut_changes_nothing(n_batch: int, llama: Path, open_model: Open) -> None:
    wanted = ReferenceModel(GGUFFile(llama)).logits(TOKENS[:90])
    backend = open_model(llama, n_batch=n_batch)
    rows = backend.forward([Chunk(0, TOKENS[:90], Outputs.ALL), Chunk(1, TOKENS[:8], Outputs.NONE), Chunk(2, TOKENS[:30])])
    assert relative_difference(rows, np.concatenate([wanted, wanted[29:30]])) < 1e-5


def test_an_empty_batch_gives_no_rows(llama: Path, open_model: Open) -> None:
    backend = open_model(llama)
    assert backend.forward([]).shape == (0, 288)
    assert backend.hidden([]).shape == (0, 64)


@pytest.mark.parametrize("n_ctx", [200, 300])
def test_longrope_takes_its_factors_by_the_context_of_one_sequence(n_ctx: int, tmp_path: Path, open_model: Open) -> None:
    path = write_variant(tmp_path / "model.gguf", "phi3-longrope")  # trained for 256 tokens at first
    wanted = ReferenceModel(GGUFFile(path), n_ctx=n_ctx).logits(TOKENS[:200])
    backend = open_model(path, n_ctx=n_ctx)
    for sequence in range(4):  # the cache outgrows 256 cells
        assert relative_difference(forward(backend, sequence, TOKENS[:200], Outputs.ALL), wanted) < 1e-5


# -- the KV cache ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["llama", "gemma3"])
def test_sequences_stay_what_they_are_while_the_cache_grows(variant: str, tmp_path: Path, open_model: Open) -> None:
    path = write_variant(tmp_path / "model.gguf", variant)
    reference, backend = ReferenceModel(GGUFFile(path)), open_model(path)
    forward(backend, 0, TOKENS[:200], Outputs.NONE)
    for sequence in range(1, 20):  # more than the first slots
        backend.share(0, sequence, 10 * sequence)
    wanted = [reference.logits(np.append(TOKENS[: 10 * sequence], TOKENS[:40]))[-1] for sequence in (1, 7, 19)]
    found = backend.forward([Chunk(sequence, TOKENS[:40]) for sequence in range(1, 20)])  # more than the first cells
    assert relative_difference(found[[0, 6, 18]], np.stack(wanted)) < tolerance(variant)
    backend.truncate(0, 150)
    assert relative_difference(forward(backend, 0, TOKENS[:1]), reference.logits(np.append(TOKENS[:150], TOKENS[:1]))[-1:]) < 2e-3


def test_a_sliding_window_keeps_what_a_truncated_sequence_sees_again(gemma: Path, open_model: Open) -> None:
    reference, backend = ReferenceModel(GGUFFile(gemma)), open_model(gemma)
    for sequence in (0, 1, 2, 3):
        forward(backend, sequence, TOKENS[:200], Outputs.NONE)
    backend.free(0)
    for sequence in range(4, 12):  # these look for free cells, and tokens that have left the window of 16 lie on their way
        forward(backend, sequence, TOKENS[:60], Outputs.NONE)
    backend.truncate(2, 60)
    backend.share(3, 20, 90)
    assert relative_difference(forward(backend, 2, TOKENS[:1]), reference.logits(np.append(TOKENS[:60], TOKENS[:1]))[-1:]) < HALF_GELU
    assert relative_difference(forward(backend, 20, TOKENS[:1]), reference.logits(np.append(TOKENS[:90], TOKENS[:1]))[-1:]) < HALF_GELU


def test_a_cache_that_cannot_grow_leaves_all_as_it_was(llama: Path, open_model: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = open_model(llama)
    forward(backend, 0, TOKENS[:200], Outputs.NONE)
    with monkeypatch.context() as patch:
        patch.setattr("edgelm.backends.memory.available_memory", lambda: 0)
        with pytest.raises(InsufficientMemoryError, match="KV cache"):
            backend.forward([Chunk(0, TOKENS[:20]), Chunk(1, TOKENS[:100])])
        with pytest.raises(InsufficientMemoryError, match="KV cache"):
            backend.forward([Chunk(sequence, TOKENS[:1]) for sequence in range(1, 20)])
        for sequence in range(2, 9):
            backend.share(0, sequence, 100)
        with pytest.raises(InsufficientMemoryError, match="KV cache"):
            backend.share(0, 9, 100)
    backend.share(0, 9, 100)
    backend.share(0, 10, 100)
    assert [backend.length(sequence) for sequence in (0, 1, 8, 9, 10, 11)] == [200, 0, 100, 100, 100, 0]
    wanted = ReferenceModel(GGUFFile(llama)).logits(TOKENS)
    assert relative_difference(forward(backend, 0, TOKENS[200:]), wanted[-1:]) < 1e-5
    assert relative_difference(forward(backend, 1, TOKENS), wanted[-1:]) < 1e-5


def test_no_more_sequences_than_llama_cpp_or_the_owner_allows(llama: Path, gemma: Path, open_model: Open) -> None:
    backend = open_model(llama, n_sequences=2)
    with pytest.raises(InsufficientMemoryError, match="n_sequences"):
        backend.forward([Chunk(sequence, TOKENS[:1]) for sequence in range(3)])
    assert backend.length(0) == 0
    backend.forward([Chunk(sequence, TOKENS[:1]) for sequence in range(2)])
    with pytest.raises(InsufficientMemoryError, match="free some"):
        backend.share(0, 2, 1)
    backend.free(1)
    backend.share(0, 2, 1)
    for path, most in ((llama, 256), (gemma, 128)):  # a sliding window takes two of llama.cpp's sequences for one
        backend = open_model(path)
        rows = backend.forward([Chunk(sequence, TOKENS[:2]) for sequence in range(most)])
        assert relative_difference(rows, np.broadcast_to(rows[0], rows.shape)) < 1e-3
        with pytest.raises(InsufficientMemoryError):
            forward(backend, most, TOKENS[:1])


def test_a_failure_in_the_midst_of_a_prompt_takes_back_what_was_appended(llama: Path, open_model: Open) -> None:
    backend = open_model(llama, n_batch=16)
    forward(backend, 0, TOKENS[:10], Outputs.NONE)
    context = backend._context
    left = 300  # of llama.cpp's looks at the callback: enough for the first parts only

    def abort(_data: object) -> bool:
        nonlocal left
        left -= 1
        return left < 0

    callback = context._api.ggml_abort_callback(abort)
    context._api.llama_set_abort_callback(context._pointer, callback, None)
    with pytest.raises(BackendUnavailableError, match="aborted"):
        backend.forward([Chunk(0, TOKENS[10:40]), Chunk(1, TOKENS)])
    left = 1 << 30
    assert [backend.length(sequence) for sequence in (0, 1)] == [10, 0]
    backend.share(0, 1, 0)  # only a sequence that is not there takes this
    wanted = ReferenceModel(GGUFFile(llama)).logits(TOKENS[:60])
    assert relative_difference(forward(backend, 0, TOKENS[10:60], Outputs.ALL), wanted[10:]) < 1e-5
    assert relative_difference(forward(backend, 1, TOKENS[:60], Outputs.ALL), wanted) < 1e-5


# -- options and what the engine says of itself ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "bytes_per_token"),
    [
        ({}, 2 * 2 * 32 * 2),
        ({"kv_type": "f32"}, 2 * 2 * 32 * 4),
        ({"kv_type": "bf16"}, 2 * 2 * 32 * 2),
        ({"kv_type": "q8_0"}, 2 * 2 * 34),
        ({"kv_type": "q8_0", "value_type": "f16", "flash_attention": False}, 2 * 34 + 2 * 32 * 2),
        ({"flash_attention": True, "mmap": False}, 2 * 2 * 32 * 2),
    ],
)
def test_types_of_the_cache(options: dict[str, object], bytes_per_token: int, tmp_path: Path, open_model: Open) -> None:
    path = write_variant(tmp_path / "model.gguf", "qwen3", n_layers=3)  # two heads of 32 channels
    backend = open_model(path, precision=None, **options)
    wanted = ReferenceModel(GGUFFile(path)).logits(TOKENS[:50])
    assert relative_difference(forward(backend, 0, TOKENS[:50], Outputs.ALL), wanted) < 0.05
    assert backend.info.kv_bytes_per_token == 3 * bytes_per_token


def test_locked_weights_compute_the_same(llama: Path, open_model: Open) -> None:
    try:
        backend = open_model(llama, mlock=True)
    except InsufficientMemoryError as error:
        pytest.skip(f"this system locks no memory: {error}")
    assert relative_difference(forward(backend, 0, TOKENS[:9]), ReferenceModel(GGUFFile(llama)).logits(TOKENS[:9])[-1:]) < 1e-5


@pytest.mark.parametrize(
    "options",
    [
        {"kv_type": "q9"},
        {"value_type": "Q8_0"},
        {"n_gpu_layers": -2},
        {"n_batch": 0},
        {"n_sequences": 0},
        {"kv_type": "q8_0", "flash_attention": False},
        {"rpc_servers": ("127.0.0.1:50052",)},
        {"rpc_servers": ("nowhere",), "n_gpu_layers": -1},
        {"rpc_servers": ("host:99999",), "n_gpu_layers": -1},
    ],
)
def test_options_that_make_no_sense(options: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError):
        LlamaCppOptions(**options)  # type: ignore[arg-type]


def test_options_that_the_model_does_not_take_are_told_in_llama_cpps_words(llama: Path, open_model: Open) -> None:
    with pytest.raises(InvalidRequestError, match="does not divide"):
        open_model(llama, kv_type="q8_0")  # heads of 16 channels, blocks of 32


def test_exact_activations_need_float_weights(tmp_path: Path, open_model: Open) -> None:
    path = write_tiny(tmp_path / "model.gguf", "llama", format="Q4_0")
    with pytest.raises(InvalidRequestError, match="cpu backend"):
        open_model(path, precision="f32")
    assert open_model(path, precision="int8").info.precision == "int8"


def test_info(llama: Path, open_model: Open) -> None:
    file = GGUFFile(llama)
    n_bytes = sum(tensor.data.nbytes for tensor in file.tensors.values())
    info = open_model(llama, n_ctx=None).info
    assert (info.backend, info.architecture, info.n_vocab, info.n_embd, info.n_layers) == ("llamacpp", "llama", 288, 64, 3)
    assert (info.n_ctx, info.n_ctx_train, info.n_threads) == (512, 512, 1)
    assert info.weight_bytes == info.bytes_per_token == n_bytes
    assert info.abilities == {"share", "truncate", "hidden"}


# -- files it refuses --------------------------------------------------------------------------------------------------------------------


def test_folders_are_told_from_gguf_files(llama: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "folder", next(iter(CLASSES)))
    with pytest.raises(UnsupportedModelError, match="convert"):
        LlamaCppBackend(HuggingFaceFolder(tmp_path / "folder"), n_threads=1)
    exported = tmp_path / "exported"
    exported.mkdir()
    write_metadata(exported, GGUFFile(llama).metadata)
    (exported / "model.onnx").write_bytes(b"graph")
    write_manifest(exported, Manifest("cpu", 8, "f32", "f32", (GraphFile("model.onnx"),)))
    with pytest.raises(UnsupportedModelError, match="onnx"):
        LlamaCppBackend(ExportedFolder(exported), n_threads=1)


def test_a_failure_to_load_has_llama_cpps_reason_and_no_noise(llama: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = llama.read_bytes()
    damaged, foreign = tmp_path / "damaged.gguf", tmp_path / "foreign.gguf"
    damaged.write_bytes(data.replace(b"blk.1.attn_q.weight", b"blk.1.attn_z.weight"))
    foreign.write_bytes(data.replace(b"llama", b"xlama"))
    with pytest.raises(ModelFileError, match=r"blk\.1\.attn_q\.weight"):
        LlamaCppBackend(GGUFFile(damaged), n_threads=1)
    with pytest.raises(UnsupportedModelError, match="xlama"):
        LlamaCppBackend(GGUFFile(foreign), n_threads=1)
    assert capfd.readouterr() == ("", "")


def test_the_models_file_is_let_go(llama: Path) -> None:
    file = GGUFFile(llama)
    backend = LlamaCppBackend(file, n_threads=1)
    with pytest.raises(ClosedError):
        _ = file.tensors
    backend.close()


def test_a_context_too_large_for_the_memory(llama: Path, open_model: Open) -> None:
    with pytest.raises(InsufficientMemoryError, match="n_ctx"):
        open_model(llama, n_ctx=10**9)


@pytest.mark.parametrize("close", [True, False], ids=["closed", "forgotten"])
def test_memory_is_given_back(close: bool, llama: Path) -> None:
    backend = LlamaCppBackend(GGUFFile(llama), n_threads=1)
    held = [backend._model._finalizer, backend._context._finalizer]
    if close:
        backend.close()
    else:
        del backend
    assert [finalizer.alive for finalizer in held] == [False, False]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # of newer Pythons, about threads; that is the point here
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_gets_errors_instead_of_waiting_for_ever(llama: Path) -> None:
    backend = LlamaCppBackend(GGUFFile(llama), n_threads=2)
    forward(backend, 1, TOKENS[:40])
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        for use in (lambda: forward(backend, 1, TOKENS[:1]), lambda: LlamaCppBackend(GGUFFile(llama), n_threads=2)):
            try:
                use()
            except BackendUnavailableError as error:
                os.write(writing, f"{error}\n".encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        assert [line.count("forked off") for line in answer] == [1, 1]
    os.waitpid(child, 0)
    backend.close()

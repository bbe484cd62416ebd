"""The CPU engine against the numpy reference, for every architecture and every format, and the rules of the Backend border."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_folders import CLASSES, write_folder
from tiny_models import FORMATS, VARIANTS, write_tiny, write_variant

from edgelm.backends.base import Chunk, Outputs
from edgelm.backends.cpu.crew import CrewSize
from edgelm.backends.cpu.engine import CPUBackend
from edgelm.backends.reference import ReferenceModel
from edgelm.errors import ClosedError, ContextOverflowError, InvalidRequestError, UnsupportedModelError
from edgelm.quant.gguf_file import GGUFFile
from edgelm.quant.huggingface import HuggingFaceFolder

TOKENS = np.random.default_rng(5).integers(0, 288, 150).astype(np.int32)
Open = Callable[..., CPUBackend]


@pytest.fixture
def open_model() -> Iterator[Open]:
    opened: list[CPUBackend] = []

    def open_one(path: Path, **options: object) -> CPUBackend:
        settings = {"n_threads": 2, "precision": "f32", **options}
        opened.append(CPUBackend(GGUFFile(path), **settings))  # type: ignore[arg-type]
        return opened[-1]

    yield open_one
    for backend in opened:
        backend.close()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_variant(tmp_path_factory.mktemp("model") / "llama.gguf", "llama")


def all_logits(backend: CPUBackend, tokens: NDArray[np.int32], sequence: int = 0) -> NDArray[np.float32]:
    return backend.forward([Chunk(sequence, tokens, Outputs.ALL)])


def one_by_one(backend: CPUBackend, tokens: NDArray[np.int32], sequence: int = 0) -> NDArray[np.float32]:
    return np.concatenate([backend.forward([Chunk(sequence, tokens[i : i + 1])]) for i in range(len(tokens))])


def relative_difference(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("variant", VARIANTS)
def test_prefill_and_decode_equal_the_reference(variant: str, tmp_path: Path, open_model: Open) -> None:
    path = write_variant(tmp_path / "model.gguf", variant)
    wanted = ReferenceModel(GGUFFile(path), n_ctx=512).logits(TOKENS)
    backend = open_model(path)
    assert relative_difference(all_logits(backend, TOKENS), wanted) < 1e-5
    assert relative_difference(one_by_one(backend, TOKENS, sequence=1), wanted) < 1e-5


@pytest.mark.parametrize("format_name", FORMATS)
def test_every_format_is_computed_as_the_file_says(format_name: str, tmp_path: Path, open_model: Open) -> None:
    path = write_tiny(tmp_path / "model.gguf", "llama", format=format_name, embedding_format=format_name)
    wanted = ReferenceModel(GGUFFile(path)).logits(TOKENS)
    exact = open_model(path)
    assert relative_difference(all_logits(exact, TOKENS), wanted) < 1e-5
    assert relative_difference(one_by_one(exact, TOKENS[:9], sequence=1), wanted[:9]) < 1e-5
    rounded = open_model(path, precision="int8")
    assert relative_difference(all_logits(rounded, TOKENS), wanted) < 0.05
    assert relative_difference(one_by_one(rounded, TOKENS[:9], sequence=1), wanted[:9]) < 0.05


@pytest.mark.parametrize("n_threads", [1, 2, 3, 5])
def test_the_number_of_threads_changes_nothing_but_rounding(n_threads: int, llama: Path, open_model: Open) -> None:
    wanted = ReferenceModel(GGUFFile(llama)).logits(TOKENS)
    backend = open_model(llama, n_threads=n_threads)
    assert relative_difference(all_logits(backend, TOKENS), wanted) < 1e-5
    assert relative_difference(one_by_one(backend, TOKENS, sequence=1), wanted) < 1e-5


@pytest.mark.parametrize("variant", ["llama", "gemma3"])
def test_logits_hang_neither_on_the_number_of_threads_nor_on_how_a_prompt_is_cut(variant: str, tmp_path: Path, open_model: Open) -> None:
    path = write_variant(tmp_path / "model.gguf", variant, format="Q8_0")
    wanted: list[NDArray[np.float32]] = []
    for n_threads in (1, 2, 3):
        backend = open_model(path, n_threads=n_threads, precision="int8")
        for sequence, cuts in enumerate(((150,), (32, 64, 150), (50, 53, 100, 150))):
            pieces = [TOKENS[start:stop] for start, stop in zip((0, *cuts), cuts, strict=False)]
            prefill = np.concatenate([all_logits(backend, piece, sequence) for piece in pieces])
            found = [prefill, one_by_one(backend, TOKENS[:100], sequence)]
            wanted = wanted or found
            for a, b in zip(found, wanted, strict=True):
                np.testing.assert_array_equal(a, b)


def test_logits_do_not_hang_on_the_size_of_the_crew(llama: Path, open_model: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = open_model(llama, n_threads=3, precision="int8")
    wanted = one_by_one(backend, TOKENS)
    sizes = iter(np.resize([3, 1, 2], 2 * len(TOKENS)))
    monkeypatch.setattr(CrewSize, "size", property(lambda _crew: int(next(sizes)), lambda _crew, _size: None), raising=False)
    np.testing.assert_array_equal(one_by_one(backend, TOKENS, sequence=1), wanted)


def test_int8_decode_equals_int8_prefill(tmp_path: Path, open_model: Open) -> None:
    path = write_tiny(tmp_path / "model.gguf", "llama", format="Q4_1", embedding_format="Q8_0")
    backend = open_model(path, precision="int8")
    # a value on the border between two codes may round either way, as attention's parts are added in another order
    assert relative_difference(one_by_one(backend, TOKENS, sequence=1), all_logits(backend, TOKENS)) < 0.02


def test_a_batch_of_unequal_sequences_equals_one_by_one(llama: Path, open_model: Open) -> None:
    backend = open_model(llama)
    starts, sizes = (0, 40, 90, 91), (40, 50, 1, 7)
    prompts = [TOKENS[start : start + size] for start, size in zip(starts, sizes, strict=True)]
    alone = [all_logits(backend, prompt, sequence=10 + i) for i, prompt in enumerate(prompts)]
    backend.forward([Chunk(0, prompts[0][:30], Outputs.NONE), Chunk(1, prompts[1][:1])])
    batch = [
        Chunk(0, prompts[0][30:], Outputs.ALL),
        Chunk(1, prompts[1][1:], Outputs.LAST),
        Chunk(2, prompts[2], Outputs.NONE),
        Chunk(3, prompts[3], Outputs.ALL),
    ]
    together = backend.forward(batch)
    wanted = np.concatenate([alone[0][30:], alone[1][-1:], alone[3]])
    assert together.shape == wanted.shape
    assert relative_difference(together, wanted) < 1e-5


def test_batches_beyond_the_internal_limit_are_cut_without_a_trace(tmp_path: Path, open_model: Open) -> None:
    path = write_variant(tmp_path / "model.gguf", "gemma3", n_ctx=2048)
    tokens = np.resize(TOKENS, 1300)
    backend = open_model(path, n_ctx=1400)
    whole = all_logits(backend, tokens)
    pieces = [all_logits(backend, piece, sequence=1) for piece in np.array_split(tokens, 7)]
    assert relative_difference(np.concatenate(pieces), whole) < 1e-5
    assert relative_difference(backend.forward([Chunk(2, tokens)]), whole[-1:]) < 1e-5


def test_a_shared_prefix_continues_both_ways(llama: Path, open_model: Open) -> None:
    backend = open_model(llama)
    wanted = all_logits(backend, TOKENS)
    backend.forward([Chunk(1, TOKENS[:100], Outputs.NONE)])
    backend.share(1, 2, 90)
    assert backend.length(2) == 90
    assert relative_difference(all_logits(backend, TOKENS[90:], sequence=2), wanted[90:]) < 1e-5
    assert relative_difference(all_logits(backend, TOKENS[100:], sequence=1), wanted[100:]) < 1e-5
    other = TOKENS[::-1].copy()
    backend.share(2, 3, 64)
    backend.truncate(3, 10)
    all_logits(backend, other[:60], sequence=3)  # writes into a page that sequence 2 still reads
    backend.truncate(2, 90)
    assert relative_difference(all_logits(backend, TOKENS[90:], sequence=2), wanted[90:]) < 1e-5


def test_truncation_rolls_back(llama: Path, open_model: Open) -> None:
    backend = open_model(llama)
    wanted = all_logits(backend, TOKENS)
    backend.truncate(0, 70)
    all_logits(backend, TOKENS[::-1][:20].copy())
    backend.truncate(0, 70)
    assert relative_difference(all_logits(backend, TOKENS[70:]), wanted[70:]) < 1e-5
    backend.free(0)
    assert backend.length(0) == 0
    assert relative_difference(all_logits(backend, TOKENS), wanted) < 1e-5


def test_hidden_states_are_what_the_output_layer_reads(llama: Path, open_model: Open) -> None:
    backend = open_model(llama)
    wanted = ReferenceModel(GGUFFile(llama)).hidden(TOKENS)
    assert relative_difference(backend.hidden([Chunk(0, TOKENS, Outputs.ALL)]), wanted) < 1e-5
    assert relative_difference(backend.hidden([Chunk(1, TOKENS)]), wanted[-1:]) < 1e-5


def test_overflow_is_refused_before_anything_is_computed(llama: Path, open_model: Open) -> None:
    backend = open_model(llama, n_ctx=100)
    backend.forward([Chunk(0, TOKENS[:60])])
    with pytest.raises(ContextOverflowError) as caught:
        backend.forward([Chunk(1, TOKENS[:10]), Chunk(0, TOKENS[60:101])])
    assert (caught.value.n_prompt_tokens, caught.value.n_ctx) == (101, 100)
    assert (backend.length(0), backend.length(1)) == (60, 0)
    assert backend.forward([Chunk(0, TOKENS[60:100])]).shape == (1, 288)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([Chunk(0, np.array([288], np.int32))], "token 288"),
        ([Chunk(0, np.array([-1], np.int32))], "token -1"),
        ([Chunk(0, np.array([], np.int32))], "at least one"),
        ([Chunk(0, TOKENS[:2]), Chunk(0, TOKENS[:2])], "twice"),
    ],
)
def test_senseless_batches_are_refused(batch: list[Chunk], message: str, llama: Path, open_model: Open) -> None:
    backend = open_model(llama)
    with pytest.raises(InvalidRequestError, match=message):
        backend.forward(batch)
    assert backend.length(0) == 0


def test_sharing_and_truncating_more_than_there_is_are_refused(llama: Path, open_model: Open) -> None:
    backend = open_model(llama)
    backend.forward([Chunk(0, TOKENS[:10]), Chunk(1, TOKENS[:10])])
    for call in (lambda: backend.share(0, 2, 11), lambda: backend.share(0, 1, 5), lambda: backend.truncate(0, 11)):
        with pytest.raises(InvalidRequestError):
            call()


def test_a_closed_model_says_so_and_closes_twice(llama: Path, open_model: Open) -> None:
    backend = open_model(llama)
    backend.close()
    backend.close()
    with pytest.raises(ClosedError):
        backend.forward([Chunk(0, TOKENS[:1])])


def test_two_models_at_once_do_not_disturb_each_other(llama: Path, tmp_path: Path, open_model: Open) -> None:
    other = write_variant(tmp_path / "model.gguf", "qwen3")
    first, second = open_model(llama), open_model(other)
    wanted = [ReferenceModel(GGUFFile(path)).logits(TOKENS[:20]) for path in (llama, other)]
    for i in range(20):
        for backend, logits in zip((first, second), wanted, strict=True):
            assert relative_difference(backend.forward([Chunk(0, TOKENS[i : i + 1])]), logits[i : i + 1]) < 1e-5


def test_heads_that_do_not_fill_a_vector_are_refused(tmp_path: Path, open_model: Open) -> None:
    path = write_tiny(tmp_path / "model.gguf", "llama", head_dim=12)
    with pytest.raises(UnsupportedModelError, match="12 channels"):
        open_model(path)


@pytest.mark.parametrize("class_name", CLASSES)
def test_hugging_face_folders_equal_the_reference(class_name: str, tmp_path: Path) -> None:
    write_folder(tmp_path, class_name, "BF16", n_shards=2)
    tokens = TOKENS[:40] % 40
    wanted = ReferenceModel(HuggingFaceFolder(tmp_path)).logits(tokens)
    backend = CPUBackend(HuggingFaceFolder(tmp_path), n_threads=2, precision="f32")
    try:
        assert relative_difference(all_logits(backend, tokens), wanted) < 1e-4
        assert relative_difference(one_by_one(backend, tokens, sequence=1), wanted) < 1e-4
    finally:
        backend.close()

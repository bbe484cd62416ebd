import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_models import write_tiny

from edgelm.bench.llamacpp_peer import LlamaCppPeer
from edgelm.errors import BackendUnavailableError, ContextOverflowError, InvalidRequestError, ModelFileError


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[LlamaCppPeer]:
    peer = LlamaCppPeer(write_tiny(tmp_path / "m.gguf", "llama"), 1, n_ctx=256)
    yield peer
    peer.close()


def test_logits_have_a_row_for_each_token(peer: LlamaCppPeer) -> None:
    logits = peer.logits([5, 6, 7])
    assert logits.shape == (3, peer.n_vocab)
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(peer.logits([5, 6, 7]), logits)


def test_greedy_decoding_follows_the_logits(peer: LlamaCppPeer) -> None:
    peer.prefill([5, 6, 7])
    ids = list(peer.decode(8, 4))
    assert ids == peer.logits([5, 6, 7, 8, *ids[:-1]])[3:].argmax(axis=1).tolist()


def test_a_prompt_of_several_batches_keeps_its_positions(tmp_path: Path) -> None:
    peer = LlamaCppPeer(write_tiny(tmp_path / "m.gguf", "llama", n_layers=1), 1, n_ctx=2304)
    tokens = [3 + i * 37 % 250 for i in range(2100)]
    peer.prefill(tokens[:-1])
    following = list(peer.decode(tokens[-1], 1))
    logits = peer.logits(tokens)
    peer.close()
    assert logits.shape[0] == 2100
    assert following == [int(logits[-1].argmax())]


def test_holding_nothing_forgets(peer: LlamaCppPeer) -> None:
    peer.hold(())
    fresh = list(peer.decode(8, 4))
    peer.prefill([100, 200, 150])
    peer.hold(())
    assert list(peer.decode(8, 4)) == fresh


def test_tokenize(peer: LlamaCppPeer) -> None:
    ids = peer.tokenize("<|im_start|>the hat")
    assert ids[0] == 1
    assert len(peer.tokenize("<|im_start|>the hat", parse_special=False)) > len(ids)
    assert peer.tokenize("") == []


def test_too_many_tokens_are_refused(peer: LlamaCppPeer) -> None:
    with pytest.raises(ContextOverflowError):
        peer.logits([5] * 257)
    with pytest.raises(InvalidRequestError, match="256 tokens is full"):
        peer.prefill([5] * 257)


def test_it_is_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    peer = LlamaCppPeer(write_tiny(tmp_path / "m.gguf", "gemma3"), 1, n_ctx=64)
    list(peer.decode(5, 2))
    peer.close()
    peer.close()
    assert capfd.readouterr() == ("", "")


def test_a_file_that_llamacpp_refuses_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelFileError, match=r"bad\.gguf"):
        LlamaCppPeer(tmp_path / "bad.gguf", 1)


def test_without_llamacpp_the_advice_is_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'edgelm\[bench\]'"):
        LlamaCppPeer(tmp_path / "m.gguf", 1)

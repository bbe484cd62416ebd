"""What the installed llama.cpp offers, and what is said where it lacks something."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from edgelm.backends.llamacpp_library import check_answers, complaints, find_devices, load_library
from edgelm.errors import BackendUnavailableError


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        yield listener.getsockname()[1]


def test_nothing_is_offloaded_unless_asked_for() -> None:
    assert find_devices(load_library(), 0, ()) == []


def test_layers_for_a_gpu_that_is_not_there() -> None:
    api = load_library()
    if api.llama_supports_gpu_offload():
        pytest.skip("this build of llama.cpp has a GPU to use")
    with pytest.raises(BackendUnavailableError, match="GGML_CUDA=on"):
        find_devices(api, 1, ())


def test_a_build_without_rpc_says_how_to_build_one_with_it() -> None:
    api = load_library()
    if api.llama_supports_rpc():
        pytest.skip("this build of llama.cpp has RPC support")
    with pytest.raises(BackendUnavailableError, match="GGML_RPC=on"):
        find_devices(api, -1, ("127.0.0.1:50052",))


def test_a_server_that_does_not_answer(free_port: int) -> None:
    with pytest.raises(BackendUnavailableError, match=f"127.0.0.1:{free_port}"):
        check_answers(f"127.0.0.1:{free_port}")


def test_a_server_that_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_answers(f"127.0.0.1:{server.getsockname()[1]}")


def test_llama_cpps_words_are_kept_and_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    api = load_library()
    complaints.clear()
    assert complaints.reason() == "it gives no reason"
    assert not api.llama_model_load_from_file(b"/nowhere/model.gguf", api.llama_model_default_params())
    assert complaints.speak_of("/nowhere")
    assert "/nowhere/model.gguf" in complaints.reason()
    assert not complaints.speak_of("/nowhere")
    assert capfd.readouterr() == ("", "")

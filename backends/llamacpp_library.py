"""The llama.cpp library: loading it, what it says when something fails, and the devices it offers."""

from __future__ import annotations

import ctypes
import os
import re
import socket
import threading
from collections import deque
from collections.abc import Sequence
from functools import cache
from typing import Any

from edgelm.errors import BackendUnavailableError

_OLDEST = "0.3.36"
_GPU_TYPES = (1, 2)  # GGML_BACKEND_DEVICE_TYPE_GPU and _IGPU
_LOG_WARN, _LOG_ERROR = 3, 4
_CONNECT_SECONDS = 5.0


class Complaints(threading.local):
    """The last warnings and errors that llama.cpp logged, each thread's own: it logs from the thread that called it."""

    def __init__(self) -> None:
        self._lines: deque[tuple[int, str]] = deque(maxlen=16)

    def note(self, level: int, line: str) -> None:
        self._lines.append((level, line))

    def clear(self) -> None:
        self._lines.clear()

    def speak_of(self, word: str) -> bool:
        """Whether any of them has the word."""
        return any(word in line for _, line in self._lines)

    def reason(self) -> str:
        """The errors as one text; they are forgotten then, so that the next failure has its own."""
        errors = [line for level, line in self._lines if level == _LOG_ERROR]
        self._lines.clear()
        return "; ".join(errors) or "it gives no reason"


complaints = Complaints()


def _on_log(level: int, text: bytes, _data: object) -> None:
    if level in (_LOG_WARN, _LOG_ERROR):
        complaints.note(level, re.sub(r"^\w+: ", "", text.decode(errors="replace").strip()))  # without the name of its C function


# llama.cpp keeps a pointer to its log callback, one for the whole process, so this one must live as long.
_LOG_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(_on_log)


def load_library() -> Any:
    """llama-cpp-python's module of C functions, silent on stderr from now on.

    Raises:
        BackendUnavailableError: it is not installed, older than this engine needs, does not load here, or was in use before this process
            was forked off.
    """
    try:
        from llama_cpp import llama_cpp
    except (ImportError, RuntimeError, OSError) as error:  # its loader raises RuntimeError for a library that does not load
        raise BackendUnavailableError(f"llama.cpp cannot be loaded ({error}); install it with: pip install 'edgelm[llamacpp]'") from error
    fields = {name for name, *_ in (*llama_cpp.llama_model_params._fields_, *llama_cpp.llama_context_params._fields_)}
    if not {"load_mode", "n_outputs_max", "kv_unified", "swa_full"} <= fields:
        raise BackendUnavailableError(f"llama-cpp-python is too old; update it with: pip install --upgrade 'llama-cpp-python>={_OLDEST}'")
    if _first_process() != os.getpid():  # its threads do not survive a fork; waiting for them would last for ever
        raise BackendUnavailableError(
            "llama.cpp was in use before this process was forked off, and cannot be used here; start the process with "
            "multiprocessing's method spawn, or open no model in llama.cpp before the fork"
        )
    llama_cpp.llama_log_set(_LOG_CALLBACK, None)
    llama_cpp.llama_backend_init()
    return llama_cpp


@cache
def _first_process() -> int:
    """The process that loaded the library first; those that are forked off from it inherit the answer."""
    return os.getpid()


def find_devices(api: Any, n_gpu_layers: int, rpc_servers: Sequence[str]) -> list[int] | None:
    """Handles of the devices that layers may go to: the servers', then the GPUs here. None lets llama.cpp take all GPUs.

    Raises:
        BackendUnavailableError: this build or machine has nothing that could take layers, or a server does not answer.
    """
    if n_gpu_layers == 0:
        return []
    ggml = _Registry(api)
    gpus = ggml.gpus()
    if rpc_servers:
        return [device for server in rpc_servers for device in ggml.server_devices(server)] + gpus
    if not gpus:
        raise BackendUnavailableError(
            f"n_gpu_layers is {n_gpu_layers}, but the installed llama.cpp has no GPU to use here; set n_gpu_layers=0, or build "
            "llama-cpp-python for yours, for example: CMAKE_ARGS='-DGGML_CUDA=on' pip install --no-binary :all: llama-cpp-python"
        )
    return None


class _Registry:
    """ggml's registry of devices, which llama-cpp-python does not declare; libllama brings the functions along."""

    def __init__(self, api: Any) -> None:
        self._api = api
        self._library = api._lib

    def _call(self, name: str, result: Any, *arguments: Any) -> Any:
        try:
            function = self._library[name]
        except AttributeError:
            raise BackendUnavailableError(
                f"the installed llama.cpp does not export {name}, which GPUs and RPC servers need; set n_gpu_layers=0"
            ) from None
        function.restype = result
        function.argtypes = [type(argument) for argument in arguments]
        return function(*arguments)

    def gpus(self) -> list[int]:
        count = self._call("ggml_backend_dev_count", ctypes.c_size_t)
        handles = [self._call("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t(index)) for index in range(count)]
        return [handle for handle in handles if self._call("ggml_backend_dev_type", ctypes.c_int, ctypes.c_void_p(handle)) in _GPU_TYPES]

    def server_devices(self, server: str) -> list[int]:
        """Devices of an RPC server ("host:port")."""
        registry = self._call("ggml_backend_reg_by_name", ctypes.c_void_p, ctypes.c_char_p(b"RPC"))
        if not registry:
            raise BackendUnavailableError(
                "the installed llama.cpp has no RPC support; build llama-cpp-python with it: "
                "CMAKE_ARGS='-DGGML_RPC=on' pip install --no-binary :all: --force-reinstall llama-cpp-python"
            )
        check_answers(server)  # llama.cpp ends the process where a server does not answer
        name = ctypes.c_char_p(b"ggml_backend_rpc_add_server")
        address = self._call("ggml_backend_reg_get_proc_address", ctypes.c_void_p, ctypes.c_void_p(registry), name)
        if not address:
            raise BackendUnavailableError("the RPC support of the installed llama.cpp is too old; update llama-cpp-python")
        added = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)(address)(server.encode())
        if not added:
            raise BackendUnavailableError(f"the RPC server {server} offers no device; look at its output")
        count = self._call("ggml_backend_reg_dev_count", ctypes.c_size_t, ctypes.c_void_p(added))
        return [
            self._call("ggml_backend_reg_dev_get", ctypes.c_void_p, ctypes.c_void_p(added), ctypes.c_size_t(index))
            for index in range(count)
        ]


def check_answers(server: str) -> None:
    """
    Raises:
        BackendUnavailableError: nobody listens at "host:port".
    """
    host, _, port = server.rpartition(":")
    try:
        socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
    except OSError as error:
        raise BackendUnavailableError(
            f"no RPC server answers at {server} ({error}); start llama.cpp's rpc-server there, or leave it out of rpc_servers"
        ) from error

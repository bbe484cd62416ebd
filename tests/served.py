"""A server on a free port of this machine, over a model that says what it is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import anthropic
import httpx
import openai
import uvicorn
from byte_model import byte_metadata

from edgelm.backends.scripted import Script, ScriptedBackend
from edgelm.runtime.chat_model import ChatModel
from edgelm.runtime.llm import LLM
from edgelm.runtime.local_model import LocalModel
from edgelm.runtime.model_pool import ModelPool, ModelSource
from edgelm.runtime.scheduler import Limits
from edgelm.runtime.server.access import Access
from edgelm.runtime.server.app import create_app
from edgelm.runtime.server.connection import Connection
from edgelm.runtime.tokenizer import Tokenizer


class Served:
    """A server that runs.

    Attributes:
        url: of it.
        port: that it listens at.
        backends: what it computed with, one after the other if the model was unloaded.
        model: what answers, once it has been asked.
        http: a client of it.
    """

    def __init__(
        self,
        script: Script,
        access: Access = Access(),  # noqa: B008
        limits: Limits = Limits(),  # noqa: B008
        n_ctx: int = 512,
        names: Sequence[str] = ("scripted",),
        connection: type[Connection] = Connection,
        logs_text: bool = False,
        front: Callable[[LocalModel], ChatModel] | None = None,
    ) -> None:
        self.backends: list[ScriptedBackend] = []
        metadata = byte_metadata()

        def load() -> LocalModel:
            self.backends.append(ScriptedBackend(script, n_vocab=258, n_ctx=n_ctx))
            self.model = LocalModel(LLM.from_parts(self.backends[-1], Tokenizer.from_metadata(metadata), metadata), limits)
            return self.model

        pool = ModelPool({name: ModelSource(load, 1, front) for name in names})
        config = uvicorn.Config(create_app(pool, access, logs_text=logs_text), port=0, http=connection, log_level="error", lifespan="on")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        end = time.monotonic() + 20
        while not self._server.started:
            assert time.monotonic() < end
            time.sleep(0.005)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._clients = ExitStack()
        self.http = self._clients.enter_context(httpx.Client(base_url=self.url, timeout=20, trust_env=False))

    def chat(self, text: str = "hi", **fields: Any) -> httpx.Response:
        return self.http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": text}], **fields})

    def openai(self) -> openai.OpenAI:
        """The official client of OpenAI's protocol, closed with the server."""
        return self._clients.enter_context(openai.OpenAI(base_url=f"{self.url}/v1", api_key="any", max_retries=0))

    def anthropic(self) -> anthropic.Anthropic:
        """The official client of Anthropic's protocol, closed with the server."""
        return self._clients.enter_context(anthropic.Anthropic(base_url=self.url, api_key="any", max_retries=0))

    def close(self) -> None:
        self._clients.close()
        self._server.should_exit = True
        self._thread.join(20)
        assert not any(backend.sequences for backend in self.backends)


MakeServed = Callable[..., Served]

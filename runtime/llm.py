"""The public face of a model: text in, text out, on this device."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Coroutine, Generator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from threading import Event
from time import perf_counter
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from edgelm.backends.base import Backend, ModelInfo, Progress
from edgelm.backends.registry import open_backend
from edgelm.errors import ClosedError, InvalidRequestError
from edgelm.runtime.async_stream import stream_from_thread
from edgelm.runtime.catalogue import resolve_model
from edgelm.runtime.continuation import Continuation
from edgelm.runtime.generation import generate
from edgelm.runtime.measures import embedding_of, log_probabilities, logits_of
from edgelm.runtime.results import Completion, Delta, Score, collect
from edgelm.runtime.sampling import SamplingFields, SamplingParams
from edgelm.runtime.settings import is_offline, read_settings

if TYPE_CHECKING:
    from edgelm.quant.model_file import ModelFile
    from edgelm.runtime.chat_template import ChatTemplate
    from edgelm.runtime.constraint import ConstraintFactory
    from edgelm.runtime.tokenizer import Tokenizer

Message = Mapping[str, Any]
Tool = Mapping[str, Any]
Prompt = str | Sequence[int]
Stream = Generator[Delta, None, None]
AsyncStream = AsyncGenerator[Delta, None]


class LLM:
    """A language model, loaded.

    Several threads may use one LLM at once; their computations take turns. Close it, or use it in a `with` statement.

        with LLM("smollm2-135m") as llm:
            print(llm.chat([{"role": "user", "content": "Why is the sky blue?"}]).text)
    """

    def __init__(
        self,
        model: str | Path,
        backend: str | None = None,
        *,
        n_threads: int | None = None,
        n_ctx: int | None = None,
        precision: Literal["int8", "f32"] | None = None,
        backend_options: Mapping[str, object] = MappingProxyType({}),
        progress: Progress | None = None,
    ) -> None:
        """Load a model.

        Args:
            model: path of a model file, a Hugging Face folder or an exported folder, a catalogue name ("smollm2-135m"),
                or "hf:owner/repo/file". Models known by name must have been pulled (`edgelm pull`, or edgelm.runtime.download.pull).
            backend: name of the engine, "cpu", "llamacpp" or "onnx"; None for "cpu", and for "onnx" where the model is an exported folder.
            n_threads: threads that compute; None for the physical cores that this process may use.
            n_ctx: tokens that one conversation may hold, not more than the model was trained for; None for that number, but 4096 at most.
            precision: of the activations in products with quantized weights; "f32" is exact and slower. None lets the engine choose: int8.
            backend_options: the engine's own options, by name.
            progress: called with a line when something takes long, such as the first compilation of the kernels.

        Raises:
            ModelFileError: the file is missing or damaged, or the model has not been pulled.
            UnsupportedModelError: its architecture, a format or the tokenizer is not supported.
            InvalidRequestError: an argument makes no sense.
            InsufficientMemoryError: it does not fit the memory that is free.
            BackendUnavailableError: there is no such engine, or it cannot run here.
        """
        from edgelm.quant.open_model import open_model
        from edgelm.runtime.tokenizer import Tokenizer

        if backend_options.get("rpc_servers") and is_offline():
            raise InvalidRequestError("EDGELM_OFFLINE is set, and rpc_servers are other machines; leave out one of them")
        start = perf_counter()
        file = open_model(resolve_model(model))
        try:
            tokenizer = Tokenizer.from_metadata(file.metadata)
            check_n_ctx(n_ctx, file.metadata)
            engine = open_backend(
                backend or _default_backend(file),
                file,
                n_threads=n_threads,
                n_ctx=n_ctx,
                precision=precision,
                progress=progress,
                cache_folder=read_settings().home,
                options=backend_options,
            )
        except BaseException:
            file.close()
            raise
        self._file: ModelFile | None = file
        self._assemble(engine, tokenizer, file.metadata, perf_counter() - start)

    @classmethod
    def from_parts(cls, backend: Backend, tokenizer: Tokenizer, metadata: Mapping[str, Any] | None = None) -> Self:
        """An LLM of a backend and a tokenizer that are already there; it closes the backend.

        Args:
            metadata: the model's, for the chat template (key tokenizer.chat_template); may be left out.
        """
        llm = cls.__new__(cls)
        llm._file = None
        llm._assemble(backend, tokenizer, metadata or {}, 0.0)
        return llm

    def _assemble(self, backend: Backend, tokenizer: Tokenizer, metadata: Mapping[str, Any], load_s: float) -> None:
        self._backend = backend
        self._tokenizer = tokenizer
        self._metadata = metadata
        self._load_s = load_s
        self._closed = False

    # What the model is

    @property
    def info(self) -> ModelInfo:
        """Sizes, context, threads, precision and memory of the loaded model."""
        return self._backend.info

    @property
    def backend(self) -> Backend:
        """The engine.

        Raises:
            ClosedError: the LLM was closed.
        """
        if self._closed:
            raise ClosedError("this LLM was closed; make a new one")
        return self._backend

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The model file's metadata under GGUF keys."""
        return self._metadata

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._tokenizer

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """The model's chat template.

        Raises:
            TemplateError: the model has none, or it is malformed.
        """
        from edgelm.runtime.chat_template import ChatTemplate

        return ChatTemplate.from_metadata(self._metadata, self._tokenizer)

    @cached_property
    def constraints(self) -> ConstraintFactory:
        """Makes the constraints that hold answers to a form.

        Raises:
            MissingPackageError: llguidance is not installed.
        """
        from edgelm.runtime.constraint import ConstraintFactory

        return ConstraintFactory(self._tokenizer, self.info.n_vocab)

    # Text and tokens

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """Tokens of a text.

        Args:
            add_special: add the tokens that the model wants around a text (such as beginning-of-text).
            parse_special: read special tokens written in the text as such, not as plain text.
        """
        return list(self._tokenizer.encode(text, add_special=add_special, parse_special=parse_special))

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """Text of tokens; bytes that are no UTF-8 become U+FFFD."""
        return self._tokenizer.decode(self._array(token_ids).tolist())

    # Generation

    # fmt: off
    @overload
    def generate(self, prompt: Prompt, params: SamplingParams | None = None, *, stream: Literal[False] = False,
                 cancelled: Event | None = None, **fields: Unpack[SamplingFields]) -> Completion: ...
    @overload
    def generate(self, prompt: Prompt, params: SamplingParams | None = None, *, stream: Literal[True],
                 cancelled: Event | None = None, **fields: Unpack[SamplingFields]) -> Stream: ...
    def generate(self, prompt: Prompt, params: SamplingParams | None = None, *, stream: bool = False,
                 cancelled: Event | None = None, **fields: Unpack[SamplingFields]) -> Completion | Stream:
        # fmt: on
        """Continue a prompt.

        Args:
            prompt: text, which gets the model's beginning-of-text token, or tokens, which are taken as they are.
            params: how to sample and when to stop; keyword arguments of the same names (temperature=0.2, ...) override it.
            stream: return a generator of Deltas, each as soon as it is computed. Closing it, or letting it go, ends the computation.
            cancelled: setting this event from another thread ends the generation before its next token.

        Raises:
            ContextOverflowError: the prompt does not fit the context; nothing was computed, nothing is ever cut off.
            InvalidRequestError: a value that makes no sense.
            ClosedError: the LLM was closed.
        """
        deltas = self._start(self.prompt_tokens(prompt), params, fields, cancelled or Event())
        return deltas if stream else collect(deltas)

    # fmt: off
    @overload
    def chat(self, messages: Sequence[Message], params: SamplingParams | None = None, *, tools: Sequence[Tool] | None = None,
             stream: Literal[False] = False, cancelled: Event | None = None, **fields: Unpack[SamplingFields]) -> Completion: ...
    @overload
    def chat(self, messages: Sequence[Message], params: SamplingParams | None = None, *, tools: Sequence[Tool] | None = None,
             stream: Literal[True], cancelled: Event | None = None, **fields: Unpack[SamplingFields]) -> Stream: ...
    def chat(self, messages: Sequence[Message], params: SamplingParams | None = None, *, tools: Sequence[Tool] | None = None,
             stream: bool = False, cancelled: Event | None = None, **fields: Unpack[SamplingFields]) -> Completion | Stream:
        # fmt: on
        """Answer a conversation, written out by the model's own chat template.

        Args:
            messages: dictionaries with "role" ("system", "user", "assistant", ...) and "content".
            tools: JSON descriptions of functions, for templates that offer them to the model.

        The other arguments and errors are those of generate, and:

        Raises:
            TemplateError: the model has no chat template (use generate), or it refuses these messages.
        """
        deltas = self._start(self.chat_tokens(messages, tools), params, fields, cancelled or Event())
        return deltas if stream else collect(deltas)

    # fmt: off
    @overload
    def agenerate(self, prompt: Prompt, params: SamplingParams | None = None, *, stream: Literal[False] = False,
                  **fields: Unpack[SamplingFields]) -> Coroutine[Any, Any, Completion]: ...
    @overload
    def agenerate(self, prompt: Prompt, params: SamplingParams | None = None, *, stream: Literal[True],
                  **fields: Unpack[SamplingFields]) -> AsyncStream: ...
    def agenerate(self, prompt: Prompt, params: SamplingParams | None = None, *, stream: bool = False,
                  **fields: Unpack[SamplingFields]) -> Coroutine[Any, Any, Completion] | AsyncStream:
        # fmt: on
        """As generate, computed in a thread: `await` it whole, or `async for` over it with stream=True.

        Cancelling the task, or closing the async generator, ends the computation before its next token.
        """
        return self._start_async(self.prompt_tokens(prompt), params, fields, stream)

    # fmt: off
    @overload
    def achat(self, messages: Sequence[Message], params: SamplingParams | None = None, *, tools: Sequence[Tool] | None = None,
              stream: Literal[False] = False, **fields: Unpack[SamplingFields]) -> Coroutine[Any, Any, Completion]: ...
    @overload
    def achat(self, messages: Sequence[Message], params: SamplingParams | None = None, *, tools: Sequence[Tool] | None = None,
              stream: Literal[True], **fields: Unpack[SamplingFields]) -> AsyncStream: ...
    def achat(self, messages: Sequence[Message], params: SamplingParams | None = None, *, tools: Sequence[Tool] | None = None,
              stream: bool = False, **fields: Unpack[SamplingFields]) -> Coroutine[Any, Any, Completion] | AsyncStream:
        # fmt: on
        """As chat, computed in a thread; see agenerate."""
        return self._start_async(self.chat_tokens(messages, tools), params, fields, stream)

    def chat_tokens(self, messages: Sequence[Message], tools: Sequence[Tool] | None = None) -> list[int]:
        """The tokens of a conversation as the chat template writes it, ready for the model's answer.

        Raises:
            TemplateError: the model has no chat template, or it refuses these messages.
        """
        text = self.chat_template.render(messages, tools=tools, add_generation_prompt=True)
        return self._text_tokens(text)

    def prompt_tokens(self, prompt: Prompt) -> list[int]:
        """The tokens of a prompt, ready to be continued; see generate."""
        tokens = self._text_tokens(prompt) if isinstance(prompt, str) else self._array(prompt).tolist()
        bos = self._tokenizer.bos_id
        if not tokens and bos is None:
            raise InvalidRequestError("the prompt is empty and the model has no beginning-of-text token to start from; give some text")
        return tokens or [bos]

    def continuation(self, tokens: Sequence[int], params: SamplingParams) -> Continuation:
        """How these tokens would go on: what is left to do is to compute.

        Raises:
            ContextOverflowError, InvalidRequestError, MissingPackageError
        """
        constraint = None if params.form is None else self.constraints.make(params.form)
        return Continuation(self._tokenizer, tokens, params, self.info.n_ctx, self._load_s, constraint)

    # Measures

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits after each of the tokens, float32 [n_tokens, n_vocab].

        Raises:
            ContextOverflowError, InsufficientMemoryError, InvalidRequestError, ClosedError
        """
        return logits_of(self.backend, self._array(token_ids))

    def score(self, text: Prompt) -> Score:
        """How likely the model finds each token of a text (with the model's beginning-of-text token) or of given tokens.

        Raises:
            ContextOverflowError, InvalidRequestError, ClosedError
        """
        tokens = self.prompt_tokens(text)
        return Score(tuple(tokens), log_probabilities(self.backend, self._array(tokens)))

    def embed(self, texts: str | Sequence[str]) -> NDArray[np.float32]:
        """One vector per text, float32 [n_texts, n_embd]: hidden states averaged over the text's tokens, scaled to length 1.

        Their dot product is the cosine similarity. A model that was not trained for it gives rough similarities only.

        Raises:
            BackendUnavailableError: the backend gives no hidden states.
            ContextOverflowError, InvalidRequestError, ClosedError
        """
        backend = self.backend
        all_tokens = [self._array(self.prompt_tokens(text)) for text in ([texts] if isinstance(texts, str) else texts)]
        vectors = [embedding_of(backend, tokens) for tokens in all_tokens]
        return np.stack(vectors) if vectors else np.empty((0, self.info.n_embd), np.float32)

    # Closing

    def close(self) -> None:
        """Release the model's memory; generations under way end with ClosedError. Closing twice is allowed."""
        self._closed = True
        self._backend.close()
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # The inside

    def _start(self, tokens: Sequence[int], params: SamplingParams | None, fields: SamplingFields, cancelled: Event) -> Stream:
        merged = replace(params or SamplingParams(), **fields)
        return generate(self.backend, self.continuation(tokens, merged), cancelled)

    def _start_async(
        self, tokens: Sequence[int], params: SamplingParams | None, fields: SamplingFields, stream: bool
    ) -> Coroutine[Any, Any, Completion] | AsyncStream:
        cancelled = Event()
        deltas = stream_from_thread(self._start(tokens, params, fields, cancelled), cancelled)
        return deltas if stream else _collect_async(deltas)

    def _text_tokens(self, text: str) -> list[int]:
        """Tokens of a text that the model will go on with: beginning-of-text before it where the model wants one, nothing after it."""
        tokenizer = self._tokenizer
        tokens = self.tokenize(text, add_special=True)
        if tokenizer.add_bos and tokens[:2] == [tokenizer.bos_id] * 2:  # the text, written by a chat template, begins with it itself
            del tokens[0]
        if tokenizer.add_eos and tokens[-1:] == [tokenizer.eos_id]:
            del tokens[-1]
        return tokens

    def _array(self, token_ids: Sequence[int]) -> NDArray[np.int32]:
        """The tokens as int32 [n], each of them in the vocabulary."""
        n_vocab = self.info.n_vocab
        try:
            array = np.asarray(token_ids)
        except ValueError:  # lists of different lengths
            array = np.empty((0, 0))
        if array.ndim != 1 or (array.size and (array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= n_vocab)):
            raise InvalidRequestError(f"tokens must be whole numbers from 0 to {n_vocab - 1} (the vocabulary); got {token_ids!r:.60}")
        return array.astype(np.int32)


async def _collect_async(deltas: AsyncStream) -> Completion:
    async with aclosing(deltas):
        return collect([delta async for delta in deltas])


def check_n_ctx(n_ctx: int | None, metadata: Mapping[str, Any]) -> None:
    """Refuse a context longer than what the model was trained for.

    Raises:
        InvalidRequestError: it is longer.
    """
    trained = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    if n_ctx is not None and isinstance(trained, int) and n_ctx > trained > 0:
        raise InvalidRequestError(f"n_ctx is {n_ctx}, but the model was trained for {trained} tokens and fails beyond; ask for less")


def _default_backend(file: ModelFile) -> str:
    from edgelm.quant.exported_folder import ExportedFolder

    return "onnx" if isinstance(file, ExportedFolder) else "cpu"

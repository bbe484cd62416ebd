"""Quality of engines and model files on a text, beside a reference: perplexity, and divergence from its predictions, token by token.

The text's first tokens are cut into windows. Each window is predicted by itself, from an empty context and with the tokenizer's beginning
token where it adds one. As many engines as memory holds go through the text together, so that the reference predicts it once for them all.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from edgelm.backends.base import Backend
from edgelm.backends.engine_predictor import EnginePredictor
from edgelm.backends.memory import available_memory
from edgelm.backends.registry import open_backend
from edgelm.bench.model_facts import describe_model
from edgelm.bench.quality_gate import keeps_gate
from edgelm.bench.record import PairedQuality, Quality
from edgelm.errors import InsufficientMemoryError, InvalidRequestError
from edgelm.quant.evaluate import Evaluation, Tokens, compare, evaluate
from edgelm.quant.exported_folder import is_exported_folder
from edgelm.quant.open_model import open_model
from edgelm.runtime.tokenizer import Tokenizer

Engine = tuple[str, str | None]
"""Name of an edgelm engine, and the precision of its activations; None for its choice."""


@dataclass(frozen=True)
class QualityTest:
    """What is predicted, and what it is compared with.

    Attributes:
        text: a file in UTF-8.
        reference: another model with the same vocabulary; None for the model itself. It is computed by the cpu engine at precision f32, or
            by the onnx engine where it is an exported folder.
        n_tokens: tokens of the text at most, without the windows' beginning tokens.
        n_window: tokens of a window, its beginning token included.
        gate: greatest relative rise of perplexity that passes; None for no gate.
    """

    text: Path
    reference: Path | None = None
    n_tokens: int = 4096
    n_window: int = 512
    gate: float | None = None

    def __post_init__(self) -> None:
        if self.n_tokens < 1 or self.n_window < 2 or (self.gate is not None and not self.gate > 0):
            raise InvalidRequestError(
                f"{self.n_tokens} tokens in windows of {self.n_window}, gate {self.gate}: give at least 1 token, windows of at least 2, "
                "and a gate above 0"
            )

    def windows(self, models: Sequence[Path]) -> list[Tokens]:
        """The text's windows, after everything that can be known to be wrong before an engine is opened was looked for.

        The first model's tokenizer cuts the text.

        Raises:
            InvalidRequestError: the text is too short or no UTF-8, the vocabularies differ, or there is no reference to all models.
            EdgeLMError: a model's file cannot be read.
        """
        _check_names(models)
        if self.reference is None and len(models) > 1:
            raise InvalidRequestError(
                f"{len(models)} models have no common reference; give the one that all are compared with (--reference)"
            )
        if self.reference is None and is_exported_folder(models[0]):
            raise InvalidRequestError(
                f"{models[0]} is an exported folder, which cannot be its own reference at f32; give the model it was made from"
            )
        windows = text_windows(_tokenizer(models[0]), _read(self.text).decode(), self.n_tokens, self.n_window)
        if self.reference is not None:
            check_same_vocabulary(models, self.reference)
        return windows


def qualities(
    models: Sequence[Path], engines: Sequence[Engine], test: QualityTest, n_threads: int, progress: Callable[[str], None]
) -> Iterator[Quality]:
    """Quality of each model with each engine, in that order; from the second on also beside the first.

    Args:
        models: model files or folders, of different names.
        engines: what predicts with them.
        progress: called with a line about what is being done.

    Raises:
        InvalidRequestError: as QualityTest.windows says, or there is no engine.
        MeasurementError: an engine's logits are no numbers, or give a token of the text no chance at all.
        EdgeLMError: as an engine finds a model.
    """
    if not engines:
        raise InvalidRequestError("no engine to measure the quality of; name one")
    windows = test.windows(models)
    digest = hashlib.sha256(_read(test.text)).hexdigest()
    theirs = test.reference or models[0]
    opener = _Opener(test.n_window, n_threads, progress)
    with closing(opener.open(theirs, _reference_engine(theirs))) as judge:
        name = f"{theirs.name} ({judge.info.backend}, {judge.info.precision})"
        first: Evaluation | None = None
        for candidate, evaluation in _evaluations(judge, [(model, engine) for model in models for engine in engines], windows, opener):
            figures = evaluation.figures()
            yield Quality(
                engine=candidate.engine,
                precision=candidate.precision,
                reference=name,
                text=test.text.name,
                text_sha256=digest,
                n_tokens=len(evaluation.scores.kl),
                n_window=test.n_window,
                gate=test.gate,
                passed=None if test.gate is None else keeps_gate(figures.log_ratio, test.gate),
                model=describe_model(candidate.model) if len(models) > 1 else None,
                beside_first=None if first is None else _paired(evaluation, first),
                **vars(figures),
            )
            first = first or evaluation


@dataclass(frozen=True)
class _Candidate:
    model: Path
    engine: str
    precision: str

    @property
    def name(self) -> str:
        return f"{self.model.name} with {self.engine} {self.precision}"


@dataclass(frozen=True)
class _Opener:
    """How engines are opened: with room for a window, threads, and someone to tell."""

    n_window: int
    n_threads: int
    progress: Callable[[str], None]

    def open(self, model: Path, engine: Engine) -> Backend:
        name, precision = engine
        self.progress(f"quality: opening {model.name} with {name}")
        n_ctx = None if is_exported_folder(model) else self.n_window  # a folder's context is what it was exported with
        backend = open_backend(name, model, n_threads=self.n_threads, n_ctx=n_ctx, precision=precision, progress=self.progress)
        if backend.info.n_ctx < self.n_window - 1:
            backend.close()
            raise InvalidRequestError(
                f"{model.name} holds {backend.info.n_ctx} tokens, but a window has {self.n_window}; ask for smaller windows"
            )
        return backend

    def open_together(self, wanted: Sequence[tuple[Path, Engine]], stack: ExitStack) -> list[Backend]:
        """The first of the engines, at least one: as many as fit the memory that is free, with the KV caches that they are yet to fill.

        Raises:
            InsufficientMemoryError: the first alone does not fit.
        """
        free = available_memory()
        opened: list[Backend] = []
        for model, engine in wanted:
            try:
                backend = self.open(model, engine)
            except InsufficientMemoryError:
                if not opened:
                    raise
                break
            free -= backend.info.weight_bytes + backend.info.n_ctx * backend.info.kv_bytes_per_token
            if opened and free < 0:  # it could be opened all the same, because mapped weights took nothing yet
                backend.close()
                break
            stack.callback(backend.close)
            opened.append(backend)
        return opened


def _evaluations(
    judge: Backend, wanted: Sequence[tuple[Path, Engine]], windows: Sequence[Tokens], opener: _Opener
) -> Iterator[tuple[_Candidate, Evaluation]]:
    """Of all candidates in their order; the judge predicts the text once for as many as memory holds together."""
    while wanted:
        with ExitStack() as stack:
            opened = opener.open_together(wanted, stack)
            together = [_Candidate(model, each.info.backend, each.info.precision) for (model, _), each in zip(wanted, opened, strict=False)]
            predictors = [EnginePredictor(backend, each.name) for backend, each in zip(opened, together, strict=True)]
            heading = f"quality of {together[0].name}" + (f" and {len(together) - 1} more" if len(together) > 1 else "")
            found = evaluate(EnginePredictor(judge), predictors, windows, partial(_tell, opener.progress, heading))
        yield from zip(together, found, strict=True)
        wanted = wanted[len(together) :]


def _tell(progress: Callable[[str], None], heading: str, line: str) -> None:
    progress(f"{heading}: {line}")


def _paired(evaluation: Evaluation, first: Evaluation) -> PairedQuality:
    found = compare(evaluation, first)
    return PairedQuality(
        log_ratio=found.log_ratio.value,
        se_log_ratio=found.log_ratio.error,
        kl_ratio=found.kl_ratio.value if found.kl_ratio else None,
        se_kl_ratio=found.kl_ratio.error if found.kl_ratio else None,
    )


def text_windows(tokenizer: Tokenizer, text: str, n_tokens: int, n_window: int) -> list[Tokens]:
    """The first n_tokens tokens of the text in windows of n_window, int32; each begins with the beginning token if the tokenizer adds one.

    A last window of fewer tokens stays if it predicts any.

    Raises:
        InvalidRequestError: fewer than two tokens are predicted, which leaves no error to be told.
    """
    tokens = tokenizer.encode(text, parse_special=False)[:n_tokens]
    before = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    step = n_window - len(before)
    windows = [np.array(before + tokens[start : start + step], np.int32) for start in range(0, len(tokens), step)]
    whole = [window for window in windows if len(window) > 1]
    if sum(len(window) - 1 for window in whole) < 2:
        raise InvalidRequestError(
            f"{len(tokens)} tokens of text are too few: two must be predicted from others; give more of a longer text"
        )
    return whole


def check_same_vocabulary(models: Sequence[Path], reference: Path) -> None:
    """Refuse models whose predictions are not of the reference's tokens.

    Raises:
        InvalidRequestError: one has another number of tokens, or a token that means different text.
    """
    theirs = _tokenizer(reference)
    for model in models:
        ours = _tokenizer(model)
        if ours.n_vocab != theirs.n_vocab:
            raise InvalidRequestError(
                f"{model.name} has {ours.n_vocab} tokens and the reference {reference.name} {theirs.n_vocab}; "
                "give one with the same vocabulary"
            )
        for token in range(ours.n_vocab):
            if ours.is_special(token) and theirs.is_special(token):
                continue
            mine, its = ours.token_bytes(token), theirs.token_bytes(token)
            if mine != its:
                raise InvalidRequestError(
                    f"token {token} is {mine!r} in {model.name}, but {its!r} in the reference {reference.name}; "
                    "give one with the same vocabulary"
                )


def _check_names(models: Sequence[Path]) -> None:
    """Models are told apart by the names of their files."""
    if not models:
        raise InvalidRequestError("no model to measure the quality of; name one")
    name, n = Counter(model.name for model in models).most_common(1)[0]
    if n > 1:
        raise InvalidRequestError(f"{n} of the models are called {name}; rename one, so that their figures can be told apart")


def _reference_engine(model: Path) -> Engine:
    return ("onnx", None) if is_exported_folder(model) else ("cpu", "f32")


def _tokenizer(model: Path) -> Tokenizer:
    with closing(open_model(model)) as file:
        return Tokenizer.from_metadata(file.metadata)


def _read(text: Path) -> bytes:
    """The file's bytes, as they are: a text with other line ends is another text."""
    try:
        data = text.read_bytes()
        data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"{text} cannot be read as UTF-8 text ({error}); give another file") from error
    return data

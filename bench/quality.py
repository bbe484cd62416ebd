"""What an engine's predictions of a text are worth: perplexity, and divergence from a reference's predictions, token by token.

The text's first tokens are cut into windows. Each window is predicted by itself, from an empty context and with the tokenizer's beginning
token where it adds one; every token after the window's first counts. Reference and engine see the same tokens, so differences are paired.
Logits live for a few dozen tokens only: of a vocabulary of 262,144 a window's would take half a gigabyte.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgelm.backends.base import Backend, Chunk, Outputs
from edgelm.backends.registry import open_backend
from edgelm.bench.quality_gate import keeps_gate
from edgelm.bench.record import Quality
from edgelm.errors import InvalidRequestError, MeasurementError
from edgelm.quant.clustered import clustered_mean, clusters
from edgelm.quant.divergence import TokenScores, token_scores
from edgelm.quant.exported_folder import is_exported_folder
from edgelm.quant.open_model import open_model
from edgelm.runtime.tokenizer import Tokenizer

Tokens = NDArray[np.int32]
Engine = tuple[str, str | None]
"""Name of an edgelm engine, and the precision of its activations; None for its choice."""

_LOGITS_AT_ONCE = 1 << 24  # 64 MiB for each engine
_TOKENS_AT_ONCE = 512
_SEQUENCE = 0


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

    def windows(self, model: Path) -> list[Tokens]:
        """The text's windows, after everything that can be known to be wrong before an engine is opened was looked for.

        Raises:
            InvalidRequestError: the text is too short or no UTF-8, or the vocabularies differ.
            EdgeLMError: a model's file cannot be read.
        """
        if self.reference is None and is_exported_folder(model):
            raise InvalidRequestError(
                f"{model} is an exported folder, which cannot be its own reference at f32; give the model it was made from"
            )
        windows = text_windows(_tokenizer(model), _read(self.text).decode(), self.n_tokens, self.n_window)
        if self.reference is not None:
            check_same_vocabulary(model, self.reference)
        return windows


def qualities(
    model: Path, engines: Sequence[Engine], test: QualityTest, n_threads: int, progress: Callable[[str], None]
) -> Iterator[Quality]:
    """One engine's quality after the other, each compared with the reference anew.

    Args:
        model: a model file or folder.
        engines: what predicts with it.
        progress: called with a line about what is being done.

    Raises:
        InvalidRequestError: as QualityTest.windows says, or there is no engine.
        MeasurementError: an engine's logits are no numbers, or give a token of the text no chance at all.
        EdgeLMError: as an engine finds a model.
    """
    if not engines:
        raise InvalidRequestError("no engine to measure the quality of; name one")
    windows = test.windows(model)
    digest = hashlib.sha256(_read(test.text)).hexdigest()
    theirs = test.reference or model
    with closing(_open(theirs, _reference_engine(theirs), test.n_window, n_threads, progress)) as judge:
        name = f"{theirs.name} ({judge.info.backend}, {judge.info.precision})"
        for engine in engines:
            with closing(_open(model, engine, test.n_window, n_threads, progress)) as backend:
                scores = score_windows(judge, backend, windows, progress)
                precision = backend.info.precision
            figures = _figures(scores, test.n_window)
            yield Quality(
                engine=engine[0],
                precision=precision,
                reference=name,
                text=test.text.name,
                text_sha256=digest,
                n_tokens=len(scores.kl),
                n_window=test.n_window,
                gate=test.gate,
                passed=None if test.gate is None else keeps_gate(figures.log_ratio, test.gate),
                **vars(figures),
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


def check_same_vocabulary(model: Path, reference: Path) -> None:
    """Refuse models whose predictions are not of the same tokens.

    Raises:
        InvalidRequestError: they have different numbers of tokens, or a token that means different text.
    """
    ours, theirs = _tokenizer(model), _tokenizer(reference)
    if ours.n_vocab != theirs.n_vocab:
        raise InvalidRequestError(
            f"{model.name} has {ours.n_vocab} tokens and the reference {reference.name} {theirs.n_vocab}; give one with the same vocabulary"
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


def score_windows(judge: Backend, backend: Backend, windows: Sequence[Tokens], progress: Callable[[str], None]) -> TokenScores:
    """Scores of all predicted tokens, one window after the other.

    Raises:
        InvalidRequestError: the vocabularies have different sizes.
        MeasurementError: logits are no numbers, or give a token no chance at all.
    """
    ours, theirs = backend.info.n_vocab, judge.info.n_vocab
    if ours != theirs:
        raise InvalidRequestError(
            f"{backend.info.backend} predicts {ours} tokens, but the reference {theirs}; give models of one vocabulary"
        )
    n_rows = max(1, min(_TOKENS_AT_ONCE, _LOGITS_AT_ONCE // ours // 32 * 32))
    parts = []
    for i, window in enumerate(windows):
        progress(f"quality of {backend.info.backend} {backend.info.precision}: window {i + 1} of {len(windows)}")
        for engine in (judge, backend):
            engine.free(_SEQUENCE)
        for start in range(0, len(window) - 1, n_rows):
            end = min(start + n_rows, len(window) - 1)
            chunk = Chunk(_SEQUENCE, window[start:end], Outputs.ALL)
            part = token_scores(judge.forward([chunk]), backend.forward([chunk]), window[start + 1 : end + 1])
            _check_finite(part, f"token {start + 1} to {end} of window {i + 1}", backend.info.backend)
            parts.append(part)
    columns = ([getattr(part, name) for part in parts] for name in ("judge_nll", "other_nll", "kl", "agrees"))
    return TokenScores(*map(np.concatenate, columns))


@dataclass(frozen=True)
class _Figures:
    """The fields of Quality that are computed from tokens."""

    perplexity: float
    se_perplexity: float
    reference_perplexity: float
    log_ratio: float
    se_log_ratio: float
    mean_kl: float
    se_mean_kl: float
    median_kl: float
    p99_kl: float
    max_kl: float
    top_agreement: float
    se_top_agreement: float


def _figures(scores: TokenScores, n_window: int) -> _Figures:
    sizes = clusters(len(scores.kl), n_window)
    nll = clustered_mean(scores.other_nll, sizes)
    ratio = clustered_mean(scores.other_nll - scores.judge_nll, sizes)
    kl = clustered_mean(scores.kl, sizes)
    agreement = clustered_mean(scores.agrees.astype(np.float64), sizes)
    median, p99 = np.quantile(scores.kl, [0.5, 0.99])
    perplexity = math.exp(nll.value)
    return _Figures(
        perplexity=perplexity,
        se_perplexity=perplexity * nll.error,  # to first order
        reference_perplexity=math.exp(float(scores.judge_nll.mean())),
        log_ratio=ratio.value,
        se_log_ratio=ratio.error,
        mean_kl=kl.value,
        se_mean_kl=kl.error,
        median_kl=float(median),
        p99_kl=float(p99),
        max_kl=float(scores.kl.max()),
        top_agreement=agreement.value,
        se_top_agreement=agreement.error,
    )


def _check_finite(scores: TokenScores, where: str, engine: str) -> None:
    for who, values in (("the reference", scores.judge_nll), (engine, scores.other_nll), (engine, scores.kl)):
        if not np.isfinite(values).all():
            raise MeasurementError(
                f"{where}: the logits of {who} are no numbers, or give a token no chance at all, so there is no perplexity; "
                "try another precision or backend, and report it"
            )


def _open(model: Path, engine: Engine, n_window: int, n_threads: int, progress: Callable[[str], None]) -> Backend:
    name, precision = engine
    progress(f"quality: opening {model.name} with {name}")
    n_ctx = None if is_exported_folder(model) else n_window  # a folder's context is what it was exported with
    backend = open_backend(name, model, n_threads=n_threads, n_ctx=n_ctx, precision=precision, progress=progress)
    if backend.info.n_ctx < n_window - 1:
        backend.close()
        raise InvalidRequestError(f"{model.name} holds {backend.info.n_ctx} tokens, but a window has {n_window}; ask for smaller windows")
    return backend


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

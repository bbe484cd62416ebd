"""Quantizers beside each other: files of equal bytes by edgelm and by llama.cpp, of one float model, and what their predictions are worth.

All quantizers see the same calibration windows, llama.cpp's in an importance matrix made of them; `edgelm mixed` may give each matrix
another format, in no more bytes than the peer's file has. All files are read back and run in float32 over the same windows of another text.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from edgelm.backends.stepped_predictor import SteppedPredictor
from edgelm.bench.llama_quantize import llama_quantize
from edgelm.bench.quality import text_windows
from edgelm.errors import InvalidRequestError
from edgelm.quant.clustered import Mean
from edgelm.quant.evaluate import Figures, compare, evaluate
from edgelm.quant.open_model import open_model
from edgelm.runtime.calibrate import calibrate
from edgelm.runtime.quantize import quantize
from edgelm.runtime.tokenizer import Tokenizer

PEER = "llama.cpp imatrix"
UNSCALED = "unscaled"
MIXED = "edgelm mixed"
QUANTIZERS = (
    "llama.cpp",
    PEER,
    "edgelm round",
    f"edgelm search {UNSCALED}",
    "edgelm search",
    f"edgelm gptq {UNSCALED}",
    "edgelm gptq",
    MIXED,
)


@dataclass(frozen=True)
class TrialRow:
    """One file.

    Attributes:
        quantizer: one of QUANTIZERS.
        format: of the blocks' matrices.
        n_bytes: of the file.
        seconds: that making it took; None where it was there already.
        figures: of its predictions.
        kl_ratio: its mean KL over that of the peer's file of the same format; None for the peer itself, or without it.
    """

    quantizer: str
    format: str
    n_bytes: int
    seconds: float | None
    figures: Figures
    kl_ratio: Mean | None


@dataclass(frozen=True)
class TrialSettings:
    """What is compared, and on what.

    Attributes:
        calibration, calibration_tokens: text that the quantizers see.
        text, n_tokens, n_window: text that the files predict.
        formats: of the blocks' matrices.
        quantizers: of QUANTIZERS.
        embedding_format: of embedding and output layer, the same for all.
    """

    calibration: Path
    text: Path
    calibration_tokens: int
    n_tokens: int
    n_window: int
    formats: tuple[str, ...]
    quantizers: tuple[str, ...] = QUANTIZERS
    embedding_format: str = "q8_0"

    def __post_init__(self) -> None:
        unknown = [name for name in self.quantizers if name not in QUANTIZERS]
        if unknown or not self.formats or not self.quantizers:
            raise InvalidRequestError(f"unknown quantizer {', '.join(unknown)}; choose from {', '.join(QUANTIZERS)}, and name a format")
        if MIXED in self.quantizers and PEER not in self.quantizers:
            raise InvalidRequestError(f"{MIXED} makes files of the sizes of {PEER}; name both")
        if self.calibration.resolve() == self.text.resolve():
            raise InvalidRequestError(f"{self.text} cannot be calibrated on and evaluated on; give two texts")


def run_trial(source: Path, folder: Path, settings: TrialSettings, n_threads: int, progress: Callable[[str], None]) -> list[TrialRow]:
    """Make the files that are not in the folder yet, and evaluate them together.

    Args:
        source: the float model, a GGUF file.
        folder: where files are kept; those there already must be of the same source and settings.

    Raises:
        EdgeLMError: as the quantizers find the source.
    """
    folder.mkdir(parents=True, exist_ok=True)
    imatrix = folder / "imatrix.gguf"
    if not imatrix.exists():
        progress("calibrating")
        calibrate(source, imatrix, settings.calibration, n_tokens=settings.calibration_tokens, n_threads=n_threads)
    files = [(quantizer, format) for format in settings.formats for quantizer in settings.quantizers]
    seconds = {}
    for each in sorted(files, key=lambda each: each[0] == MIXED):  # after the files whose sizes it takes
        seconds[each] = _make(source, folder, each, settings, imatrix, n_threads, progress)
    with ExitStack() as stack:
        reference = stack.enter_context(closing(open_model(source)))
        text = settings.text.read_text(encoding="utf-8")
        windows = text_windows(Tokenizer.from_metadata(reference.metadata), text, settings.n_tokens, settings.n_window)
        judge = SteppedPredictor(reference, windows, source.name, progress, n_threads)
        opened = [stack.enter_context(closing(open_model(_path(folder, *each)))) for each in files]
        candidates = [
            SteppedPredictor(file, windows, " ".join(each), progress, n_threads) for file, each in zip(opened, files, strict=True)
        ]
        evaluations = dict(zip(files, evaluate(judge, candidates, windows, progress), strict=True))
    rows = []
    for each in files:
        peer = evaluations.get((PEER, each[1]))
        ratio = None if peer is None or each[0] == PEER else compare(evaluations[each], peer).kl_ratio
        rows.append(TrialRow(*each, _path(folder, *each).stat().st_size, seconds[each], evaluations[each].figures(), ratio))
    return rows


def _path(folder: Path, quantizer: str, format: str) -> Path:
    return folder / f"{quantizer.replace(' ', '-')}.{format}.gguf"


def _make(
    source: Path,
    folder: Path,
    file: tuple[str, str],
    settings: TrialSettings,
    imatrix: Path,
    n_threads: int,
    progress: Callable[[str], None],
) -> float | None:
    """Seconds; None where the file was there already."""
    quantizer, format = file
    target = _path(folder, *file)
    if target.exists():
        return None
    progress(f"{quantizer}: {format}")
    started = time.perf_counter()
    embedding = settings.embedding_format
    if quantizer.startswith("llama.cpp"):
        importance = imatrix if quantizer == PEER else None
        llama_quantize(
            source,
            target,
            format,
            importance,
            pure=True,
            embedding_format=embedding,
            output_format=embedding,
            allow_requantize=True,
            n_threads=n_threads,
        )
        return time.perf_counter() - started
    _, method, *unscaled = quantizer.split()
    sees_text = method in ("gptq", "mixed")
    quantize(
        source,
        target,
        format=None if quantizer == MIXED else format,
        size=_path(folder, PEER, format).stat().st_size if quantizer == MIXED else None,
        method=None if quantizer == MIXED else method,
        calibration=settings.calibration if sees_text else None,
        calibration_tokens=settings.calibration_tokens,
        imatrix=imatrix if method == "search" else None,
        scale_channels=False if unscaled else None,
        embedding_format=None if quantizer == MIXED else embedding,
        n_threads=n_threads,
        allow_requantize=True,
    )
    return time.perf_counter() - started

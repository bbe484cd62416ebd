"""How far a calibrated model's answers are trusted, as the strategy asks for it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from edgelm.runtime.certainty import TokenCertainty
from edgelm.runtime.router.confidence import Calibration, Confidence, calibration_folder, digest_memory, load_confidence
from edgelm.runtime.router.model_digest import model_sha256

_ALL = sys.maxsize


class CalibratedTrust:
    """Implements strategy.Trust.

    Args:
        confidence: with a calibration.
        threshold: from which an answer is trusted; None for the calibration's: the higher one where more thinking comes next, the lower one
            where nothing does but the cloud.
        thinks: whether it does.
    """

    def __init__(self, confidence: Confidence, calibration: Calibration, threshold: float | None, thinks: bool) -> None:
        self._confidence = confidence
        self.n_early = _ALL if calibration.early is None else calibration.early.n_tokens
        self.threshold = threshold if threshold is not None else calibration.high if thinks else calibration.threshold
        self.hopeless = min(calibration.low, self.threshold)
        self.verifies = calibration.verification is not None

    def early(self, certainties: Sequence[TokenCertainty]) -> float | None:
        """As strategy.Trust.early."""
        return self._confidence.early(certainties)

    def of(self, certainties: Sequence[TokenCertainty], text: str) -> float | None:
        """As strategy.Trust.of."""
        return self._confidence.of(certainties, text)

    def verified(self, confidence: float, said_yes: float) -> float | None:
        """As strategy.Trust.verified."""
        return self._confidence.verified(confidence, said_yes)


def trust_of(model: Path, home: Path, file: Path | None, threshold: float | None, thinks: bool) -> tuple[CalibratedTrust | None, str]:
    """The trust in a model's answers, and why there is none if so. It reads the whole model file, once for each.

    Args:
        home: where calibrations are kept.
        file: a calibration; None for the one that is kept for the model.

    Raises:
        ModelFileError: the calibration is damaged, or the model cannot be read.
    """
    digest = model_sha256(model, digest_memory(home))
    confidence = load_confidence(calibration_folder(home), digest) if file is None else Confidence.of_model(Calibration.load(file), digest)
    if confidence.calibration is None:
        return None, confidence.reason
    return CalibratedTrust(confidence, confidence.calibration, threshold, thinks), ""

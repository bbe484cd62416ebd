"""How likely a local model's answer is right, from how certain it was of each token; calibrated for one model file, unknown for others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import InvalidRequestError, ModelFileError
from edgelm.runtime.certainty import TokenCertainty
from edgelm.runtime.router.answer_shape import SHAPE, shape_of
from edgelm.runtime.router.certainty_features import FEATURES, features
from edgelm.runtime.router.json_file import read_json, write_json
from edgelm.runtime.router.logistic import Logistic
from edgelm.runtime.router.verify_answers import inputs_of

INPUTS = (*FEATURES, *SHAPE)
"""Of a whole answer's regression, in order. The beginning's has the certainties' alone."""

_VERSION = 1
_ENDING = ".confidence.json"

Trust = Literal["unknown", "distrusted", "doubtful", "trusted"]
"""unknown: there is no confidence, which is never trust. distrusted: more thought by the local model will not help. doubtful: it may.
trusted: good enough as it is."""


@dataclass(frozen=True)
class Early:
    """A confidence from the beginning of an answer.

    Attributes:
        n_tokens: that it looks at, or all where the answer ends before.
        logistic: over the features of those alone.
    """

    n_tokens: int
    logistic: Logistic


@dataclass(frozen=True)
class Origin:
    """How a calibration was made.

    Attributes:
        made_at: UTC, ISO 8601.
        edgelm: the version that made it.
        tasks_sha256: of the file of questions.
        n_questions, n_kinds, n_answers: questions, the kinds they are of, and answers to them.
        sampling: the settings that the answers were drawn with, by name.
        target: what the threshold was set for, such as "cloud-share=0.3".
        cloud_accuracy: that was assumed; None where none was.
    """

    made_at: str
    edgelm: str
    tasks_sha256: str
    n_questions: int
    n_kinds: int
    n_answers: int
    sampling: Mapping[str, float | int | None]
    target: str
    cloud_accuracy: float | None = None


@dataclass(frozen=True)
class Calibration:
    """What was learned about one model file.

    Attributes:
        model: what it is called; a name only.
        model_sha256: see model_digest.model_sha256.
        feature_names: inputs of the whole answer's regression, in order.
        whole: over the features of a whole answer.
        early: over those of its beginning; None where it was not calibrated.
        threshold: confidence below which the cloud is asked, where there is nothing between the two.
        low, high: below low an answer is distrusted, from high on it is trusted, and between them more thought may help.
        held_out: figures of answers that the regressions were not fitted to, by name; see calibrate.Evaluation.figures.
        origin: how it was made.
        verification: of the confidence and p(yes) of self-verification together; None where that was not tried, or does not help.

    Raises:
        InvalidRequestError: the parts do not belong together.
    """

    model: str
    model_sha256: str
    feature_names: tuple[str, ...]
    whole: Logistic
    early: Early | None
    threshold: float
    low: float
    high: float
    held_out: Mapping[str, float]
    origin: Origin
    verification: Logistic | None = None

    def __post_init__(self) -> None:
        if self.feature_names != INPUTS:
            raise InvalidRequestError(
                f"the calibration weighs other features ({', '.join(self.feature_names)}) than this version computes; make it anew"
            )
        if not 0.0 <= self.low <= self.threshold <= self.high <= math.nextafter(1.0, 2.0):
            raise InvalidRequestError(f"low {self.low:g}, threshold {self.threshold:g} and high {self.high:g} must rise within 0 to 1")
        parts = [(self.whole, len(INPUTS)), *([(self.early.logistic, len(FEATURES))] if self.early else [])]
        for logistic, n in parts:
            shapes = {array.shape for array in (logistic.mean, logistic.scale, logistic.weights)}
            if shapes != {(n,)} or not (logistic.scale > 0).all():
                raise InvalidRequestError("a regression does not have one mean, one positive scale and one weight for each feature")
        if self.verification is not None and self.verification.weights.shape != (2,):
            raise InvalidRequestError("the verification weighs two things, the confidence and what the model says of its answer")
        if self.early is not None and self.early.n_tokens < 1:
            raise InvalidRequestError(f"the early confidence looks at {self.early.n_tokens} tokens; it needs at least one")

    def trust(self, confidence: float | None) -> Trust:
        """What a confidence is good for."""
        if confidence is None or not math.isfinite(confidence):
            return "unknown"
        return "distrusted" if confidence < self.low else "doubtful" if confidence < self.high else "trusted"

    def to_json(self) -> dict[str, Any]:
        """As numbers, texts, lists and dictionaries."""
        return {
            "version": _VERSION,
            "model": self.model,
            "model_sha256": self.model_sha256,
            "feature_names": list(self.feature_names),
            "whole": _logistic_to_json(self.whole),
            "early": None if self.early is None else {"n_tokens": self.early.n_tokens, **_logistic_to_json(self.early.logistic)},
            "threshold": self.threshold,
            "low": self.low,
            "high": self.high,
            "held_out": dict(self.held_out),
            "origin": {**vars(self.origin), "sampling": dict(self.origin.sampling)},
            "verification": None if self.verification is None else _logistic_to_json(self.verification),
        }

    @classmethod
    def from_json(cls, value: object) -> Self:
        """What to_json gave.

        Raises:
            InvalidRequestError: it is of another version, or not a calibration.
        """
        if not isinstance(value, Mapping) or "version" not in value:
            raise InvalidRequestError("it is no calibration: it has no version")
        if value["version"] != _VERSION:
            raise InvalidRequestError(
                f"its version is {value['version']!r}, and this edgelm reads {_VERSION}; calibrate again, or update edgelm"
            )
        try:
            early = value["early"]
            return cls(
                model=_text(value["model"]),
                model_sha256=_text(value["model_sha256"]),
                feature_names=tuple(_text(name) for name in value["feature_names"]),
                whole=_logistic_from_json(value["whole"]),
                early=None if early is None else Early(_count(early["n_tokens"]), _logistic_from_json(early)),
                threshold=_number(value["threshold"]),
                low=_number(value["low"]),
                high=_number(value["high"]),
                held_out={_text(name): _number(figure) for name, figure in value["held_out"].items()},
                origin=_origin_from_json(value["origin"]),
                verification=None if value["verification"] is None else _logistic_from_json(value["verification"]),
            )
        except KeyError as error:
            raise InvalidRequestError(f"it is no whole calibration: {error} is missing") from None
        except (TypeError, AttributeError, ValueError) as error:
            raise InvalidRequestError(f"it is no whole calibration: {error}") from None

    def save(self, path: Path) -> None:
        """Write it, whole or not at all.

        Raises:
            OSError: the disk is full, or the folder may not be written to.
        """
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> Self:
        """What save wrote.

        Raises:
            ModelFileError: the file is missing or damaged, or of another version.
        """
        try:
            return cls.from_json(read_json(path))
        except (OSError, ValueError) as error:
            raise ModelFileError(f"{path} cannot be used as a calibration ({error}); make it with `edgelm route calibrate`") from None


class Confidence:
    """The confidence in answers of one model.

    Attributes:
        calibration: what is known about the model; None where nothing is.
        reason: why nothing is; "" where something is.
    """

    def __init__(self, calibration: Calibration | None, reason: str = "") -> None:
        self.calibration = calibration
        self.reason = "" if calibration is not None else reason or "the model is not calibrated"

    @classmethod
    def of_model(cls, calibration: Calibration | None, model_sha256: str) -> Self:
        """What a calibration says of a model, which is nothing if it was made for another file."""
        if calibration is None:
            return cls(None, f"the model {model_sha256[:12]} is not calibrated; `edgelm route calibrate` does that")
        if calibration.model_sha256 != model_sha256:
            reason = f"the calibration is of {calibration.model} {calibration.model_sha256[:12]}, and the model is {model_sha256[:12]}"
            return cls(None, f"{reason}: it is not calibrated; `edgelm route calibrate` does that")
        return cls(calibration)

    def of(self, certainties: Sequence[TokenCertainty] | None, text: str = "") -> float | None:
        """Probability that a whole answer of this text is right; None where it is not known."""
        return None if self.calibration is None else _probability(self.calibration.whole, certainties, shape_of(text))

    def verified(self, confidence: float, said_yes: float) -> float | None:
        """Probability that an answer is right, by its confidence and by what the model said of it; None where the latter does not help."""
        if self.calibration is None or self.calibration.verification is None:
            return None
        return float(self.calibration.verification.probability(inputs_of(np.array(confidence), np.array(said_yes))))

    def early(self, certainties: Sequence[TokenCertainty] | None) -> float | None:
        """Probability that an answer will be right, from its beginning; None where it is not known.

        Args:
            certainties: at least the first calibration.early.n_tokens, or all of an answer that ended before.
        """
        if self.calibration is None or self.calibration.early is None or certainties is None:
            return None
        return _probability(self.calibration.early.logistic, certainties[: self.calibration.early.n_tokens], np.empty(0))


def calibration_folder(home: Path) -> Path:
    """Where all calibrations are kept, in the folder of everything that edgelm stores."""
    return home / "calibrations"


def digest_memory(home: Path) -> Path:
    """Where the SHA-256 of models are remembered; see model_digest.model_sha256."""
    return home / "model-digests.json"


def calibration_path(folder: Path, model_sha256: str) -> Path:
    """Where the calibration of a model is kept, in the folder of all of them."""
    return folder / f"{model_sha256[:16]}{_ENDING}"


def load_confidence(folder: Path, model_sha256: str) -> Confidence:
    """The confidence in a model's answers by the calibration that is kept for it, if one is.

    Raises:
        ModelFileError: there is one, and it is damaged.
    """
    path = calibration_path(folder, model_sha256)
    return Confidence.of_model(Calibration.load(path) if path.exists() else None, model_sha256)


def _probability(logistic: Logistic, certainties: Sequence[TokenCertainty] | None, shape: NDArray[np.float64]) -> float | None:
    found = features(certainties)
    return None if found is None else float(logistic.probability(np.concatenate([found, shape])))


def _logistic_to_json(logistic: Logistic) -> dict[str, Any]:
    arrays = {"mean": logistic.mean, "scale": logistic.scale, "weights": logistic.weights}
    return {"bias": logistic.bias, **{name: array.tolist() for name, array in arrays.items()}}


def _logistic_from_json(value: Mapping[str, Any]) -> Logistic:
    mean, scale, weights = (np.array([_number(one) for one in value[name]], np.float64) for name in ("mean", "scale", "weights"))
    return Logistic(mean, scale, weights, _number(value["bias"]))


def _origin_from_json(value: Mapping[str, Any]) -> Origin:
    accuracy = value["cloud_accuracy"]
    return Origin(
        made_at=_text(value["made_at"]),
        edgelm=_text(value["edgelm"]),
        tasks_sha256=_text(value["tasks_sha256"]),
        n_questions=_count(value["n_questions"]),
        n_kinds=_count(value["n_kinds"]),
        n_answers=_count(value["n_answers"]),
        target=_text(value["target"]),
        sampling={_text(name): None if one is None else _number(one) for name, one in value["sampling"].items()},
        cloud_accuracy=None if accuracy is None else _number(accuracy),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.60} should be a text")
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"{value!r:.60} should be a number")
    return value


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TypeError(f"{value!r:.60} should be a whole number")
    return value

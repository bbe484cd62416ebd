"""How likely each model answers a question rightly, told before either has seen it, and so what is gained by asking the cloud.

Two logistic regressions tell how likely the model here and the one in the cloud are right; the expected gain is the difference. What
is learned of one format of questions misleads on another, so each format has its own; one of which too little was seen is judged by
its length alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from edgelm.errors import InvalidRequestError
from edgelm.runtime.router.logistic import Array, Logistic
from edgelm.runtime.router.signals import FEATURES, Signals

VERSION = 1
_DEFAULT = "difficulty.json"
_ARRAYS = ("mean", "scale", "weights")


class Chances(NamedTuple):
    """Probabilities of a right answer: of the model here, and of the one in the cloud."""

    local: float
    cloud: float


@dataclass(frozen=True)
class ChanceModel:
    """Both chances, from some features.

    Attributes:
        names: of the features, n of them.
        low, high: float64 [n], the range in which nearly all examples were; what is beyond is taken for its end.
        local, cloud: of n inputs each.
    """

    names: tuple[str, ...]
    low: Array
    high: Array
    local: Logistic
    cloud: Logistic

    def inputs(self, signals: Signals) -> Array:
        """float64 [n]."""
        return np.clip(signals.of(self.names), self.low, self.high)

    def gain(self, inputs: Array) -> Array:
        """Expected gain of asking the cloud, float64 [...], for inputs [..., n]."""
        return self.cloud.probability(inputs) - self.local.probability(inputs)


@dataclass(frozen=True)
class Difficulty:
    """What is expected of both models.

    Attributes:
        general: for formats of which too little was seen.
        formats: for others, by name.
        about: where it comes from: the examples, how many, their licence.
    """

    general: ChanceModel
    formats: Mapping[str, ChanceModel]
    about: Mapping[str, str] = field(default_factory=dict)

    def chances(self, signals: Signals) -> Chances:
        """How likely each model answers rightly."""
        model = self._model(signals)
        inputs = model.inputs(signals)
        return Chances(float(model.local.probability(inputs)), float(model.cloud.probability(inputs)))

    def gain(self, signals: Signals) -> float:
        """By how much asking the cloud raises the probability of a right answer; below 0 where it lowers it."""
        model = self._model(signals)
        return float(model.gain(model.inputs(signals)))

    def explain(self, signals: Signals, most: int = 3) -> tuple[str, ...]:
        """The features that move the gain most from what it were if they had their usual values, in words, with by how much."""
        model = self._model(signals)
        inputs, usual = model.inputs(signals), model.local.mean
        without = np.where(np.eye(len(inputs), dtype=bool), usual, inputs)  # [n, n], row i with feature i at its mean
        effects = model.gain(inputs) - model.gain(without)
        strongest = sorted(range(len(inputs)), key=lambda n: -abs(effects[n]))[:most]
        return tuple(
            f"{FEATURES[model.names[n]].much if inputs[n] > usual[n] else FEATURES[model.names[n]].little} ({effects[n]:+.3f})"
            for n in strongest
            if effects[n]
        )

    def _model(self, signals: Signals) -> ChanceModel:
        return self.formats.get(signals.format, self.general)

    def to_json(self) -> str:
        """A document that from_json reads."""
        document = {
            "version": VERSION,
            "about": dict(self.about),
            "general": _to_document(self.general),
            "formats": {name: _to_document(model) for name, model in self.formats.items()},
        }
        return json.dumps(document, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """
        Raises:
            InvalidRequestError: it is no such document, or of another version.
        """
        try:
            document = json.loads(text)
            if document["version"] != VERSION:
                raise InvalidRequestError(f"it is of version {document['version']!r}, and {VERSION} is read; train it again")
            formats = {str(name): _from_document(model) for name, model in document["formats"].items()}
            about = {str(name): str(value) for name, value in document["about"].items()}
            return cls(_from_document(document["general"]), formats, about)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, InvalidRequestError):
                raise InvalidRequestError(f"this is no difficulty that can be used: {error}") from None
            raise InvalidRequestError(f"this is no difficulty, as edgelm route train writes it ({type(error).__name__}: {error})") from None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file that `edgelm route train` has written.

        Raises:
            InvalidRequestError: it is not there, or none.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequestError(f"{path} cannot be read ({error}); give a file that edgelm route train has written") from None
        try:
            return cls.from_json(text)
        except InvalidRequestError as error:
            raise InvalidRequestError(f"{path}: {error}") from None

    @classmethod
    def default(cls) -> Self:
        """The one that comes with edgelm."""
        return cls.from_json(files(__package__).joinpath(_DEFAULT).read_text(encoding="utf-8"))


def _to_document(model: ChanceModel) -> dict[str, Any]:
    document: dict[str, Any] = {"features": list(model.names), "low": model.low.tolist(), "high": model.high.tolist()}
    for name, logistic in (("local", model.local), ("cloud", model.cloud)):
        document[name] = {array: getattr(logistic, array).tolist() for array in _ARRAYS} | {"bias": logistic.bias}
    return document


def _from_document(document: Mapping[str, Any]) -> ChanceModel:
    names = tuple(document["features"])
    unknown = [name for name in names if name not in FEATURES]
    if unknown or not names:
        raise InvalidRequestError(f"it names the features {unknown}, which this version of edgelm does not know; train it again")
    low, high = (_numbers(document[end], len(names)) for end in ("low", "high"))
    if (low > high).any():
        raise InvalidRequestError("a range of a feature ends before it begins; train it again")
    local, cloud = (_logistic(document[of], len(names)) for of in ("local", "cloud"))
    return ChanceModel(names, low, high, local, cloud)


def _logistic(document: Mapping[str, Any], n: int) -> Logistic:
    mean, scale, weights = (_numbers(document[array], n) for array in _ARRAYS)
    if (scale <= 0).any():
        raise InvalidRequestError("a scale is not above 0; train it again")
    return Logistic(mean, scale, weights, float(_numbers([document["bias"]], 1)[0]))


def _numbers(values: Any, n: int) -> Array:
    array = np.array(values, np.float64)
    if array.shape != (n,) or not np.isfinite(array).all():
        raise InvalidRequestError(f"it should have {n} finite numbers for its {n} features; train it again")
    return array

"""Confidence: of the model that it was calibrated for, never of another, and never from what is not known."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelm.errors import InvalidRequestError, ModelFileError
from edgelm.runtime.certainty import UNKNOWN, TokenCertainty
from edgelm.runtime.router.certainty_features import FEATURES, features
from edgelm.runtime.router.confidence import INPUTS, Calibration, Confidence, Early, Origin, calibration_path, load_confidence
from edgelm.runtime.router.logistic import Logistic

SHA = "ab" * 32
ORIGIN = Origin("2026-01-02T03:04:05+00:00", "1.0", "cd" * 32, 10, 2, 20, {"temperature": 0.0, "seed": None}, "cloud-share=0.3")
SURE, UNSURE = TokenCertainty(-0.01, 6.0, 0.05), TokenCertainty(-2.5, 0.1, 3.0)
TOKENS = st.lists(
    st.builds(TokenCertainty, st.floats(-50, 0), st.floats(0, 50), st.floats(0, 12)),
    min_size=1,
    max_size=40,
)


def by(name: str, weight: float, names: tuple[str, ...] = INPUTS) -> Logistic:
    """A regression that looks at one feature."""
    n = len(names)
    weights = np.zeros(n)
    weights[names.index(name)] = weight
    return Logistic(np.zeros(n), np.ones(n), weights, 1.0)


CALIBRATION = Calibration(
    "tiny", SHA, INPUTS, by("logprob_mean", 2.0), Early(3, by("first", 1.0, FEATURES)), 0.5, 0.4, 0.6, {"kinds.auroc": 0.7}, ORIGIN
)


def test_features_by_hand() -> None:
    rows = [TokenCertainty(-1.0, 1.0, 2.0), TokenCertainty(-0.1, 30.0, 0.5), TokenCertainty(-0.4, 3.0, 1.0)]
    found = features(rows)
    assert found is not None
    named = dict(zip(FEATURES, found.tolist(), strict=True))
    length = math.log(3) - math.log(12)
    wanted = {
        "logprob_sum": -1.5,
        "logprob_mean": -0.5,
        "logprob_q50": -0.4,
        "logprob_min": -1.0,
        "window_min": -0.5,
        "second_half": -0.25,
        "first": -1.0,
        "last": -0.55,
        "end": -0.4,
        "margin_mean": 8.0,
        "margin_first": 1.0,
        "entropy_max": 2.0,
        "log_doubtful": math.log(2),
        "log_length": math.log(3),
        "end_by_length": -0.4 * length,
    }
    assert {name: named[name] for name in wanted} == pytest.approx(wanted)


def test_the_worst_window_is_found() -> None:
    rows = [SURE] * 20
    rows[7:11] = [UNSURE] * 4
    found = features(rows)
    assert found is not None
    assert found[FEATURES.index("window_min")] == pytest.approx(UNSURE.logprob)


@given(TOKENS)
def test_features_are_finite_for_whatever_is_known(rows: list[TokenCertainty]) -> None:
    found = features(rows)
    assert found is not None
    assert found.shape == (len(FEATURES),)
    assert np.isfinite(found).all()


@given(TOKENS, st.data())
def test_one_token_that_is_not_known_makes_the_answer_unknown(rows: list[TokenCertainty], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(rows) - 1))
    name = data.draw(st.sampled_from(["logprob", "margin", "entropy"]))
    bad = replace(rows[place], **{name: data.draw(st.sampled_from([math.nan, math.inf]))})
    rows[place] = bad
    assert features(rows) is None
    assert Confidence(CALIBRATION).of(rows) is None


@pytest.mark.parametrize("certainties", [None, (), (UNKNOWN,), (SURE, UNKNOWN)])
def test_missing_is_unknown_and_never_trusted(certainties: tuple[TokenCertainty, ...] | None) -> None:
    confidence = Confidence(CALIBRATION)
    assert confidence.of(certainties) is None
    assert CALIBRATION.trust(confidence.of(certainties)) == "unknown"
    assert CALIBRATION.trust(math.nan) == "unknown"


def test_confidence_is_the_regressions() -> None:
    confidence = Confidence.of_model(CALIBRATION, SHA)
    assert confidence.reason == ""
    assert confidence.of([SURE] * 5) == pytest.approx(1 / (1 + math.exp(-(1 + 2 * SURE.logprob))))
    assert confidence.early([UNSURE, SURE]) == pytest.approx(1 / (1 + math.exp(-(1 + UNSURE.logprob))))


def test_early_confidence_sees_only_the_beginning() -> None:
    confidence = Confidence(CALIBRATION)
    assert confidence.early([SURE] * 3 + [UNKNOWN]) == confidence.early([SURE] * 3)
    assert confidence.of([SURE] * 3 + [UNKNOWN]) is None
    assert Confidence(replace(CALIBRATION, early=None)).early([SURE]) is None


def test_another_model_file_is_not_calibrated() -> None:
    other = Confidence.of_model(CALIBRATION, "ef" * 32)
    assert other.of([SURE]) is None
    assert other.early([SURE]) is None
    assert "of tiny abababababab, and the model is efefefefefef: it is not calibrated" in other.reason
    assert "is not calibrated" in Confidence.of_model(None, SHA).reason


def test_what_a_confidence_is_good_for() -> None:
    assert [CALIBRATION.trust(p) for p in (0.0, 0.39, 0.4, 0.59, 0.6, 1.0)] == [
        "distrusted",
        "distrusted",
        "doubtful",
        "doubtful",
        "trusted",
        "trusted",
    ]


def test_a_calibration_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = calibration_path(tmp_path, SHA)
    CALIBRATION.save(path)
    assert list(tmp_path.iterdir()) == [path]
    again = load_confidence(tmp_path, SHA)
    assert again.calibration is not None
    assert again.calibration.to_json() == CALIBRATION.to_json()
    for rows in ([SURE] * 4, [UNSURE, SURE]):
        assert again.of(rows) == Confidence(CALIBRATION).of(rows)
        assert again.early(rows) == Confidence(CALIBRATION).early(rows)
    assert again.calibration.origin == ORIGIN
    assert load_confidence(tmp_path, "ef" * 32).calibration is None


def test_a_file_under_another_models_name_is_not_believed(tmp_path: Path) -> None:
    CALIBRATION.save(calibration_path(tmp_path, "ef" * 32))
    assert "is not calibrated" in load_confidence(tmp_path, "ef" * 32).reason


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": 2}, "its version is 2, and this edgelm reads 1"),
        ({"version": None}, "its version is None"),
        ({"whole": None}, "no whole calibration"),
        ({"threshold": "0.5"}, "'0.5' should be a number"),
        ({"threshold": True}, "should be a number"),
        ({"low": 0.9}, "must rise"),
        ({"high": 7.0}, "must rise"),
        ({"feature_names": ["mean"]}, "other features"),
        ({"origin": {}}, "is missing"),
        ({"early": {**CALIBRATION.to_json()["early"], "n_tokens": 0}}, "at least one"),
        ({"whole": {**CALIBRATION.to_json()["whole"], "weights": [1.0]}}, "one weight for each feature"),
        ({"whole": {**CALIBRATION.to_json()["whole"], "scale": [0.0] * len(INPUTS)}}, "one positive scale"),
    ],
)
def test_a_damaged_calibration_says_what_is_wrong(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps({**CALIBRATION.to_json(), **change}))
    with pytest.raises(ModelFileError, match=f"c.json cannot be used as a calibration.*{says}"):
        Calibration.load(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"version": NaN}'])
def test_what_is_no_calibration_at_all_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(ModelFileError, match="make it with `edgelm route calibrate`"):
        Calibration.load(path)


def test_every_field_is_needed(tmp_path: Path) -> None:
    whole = CALIBRATION.to_json()
    for name in whole:
        path = tmp_path / "c.json"
        path.write_text(json.dumps({key: value for key, value in whole.items() if key != name}))
        with pytest.raises(ModelFileError, match=f"no version|{name}' is missing"):
            Calibration.load(path)


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    CALIBRATION.save(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ModelFileError):
        Calibration.load(path)


def test_parts_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="must rise"):
        replace(CALIBRATION, threshold=0.9)


def test_the_look_of_an_answer_counts() -> None:
    calibration = replace(CALIBRATION, whole=by("repetition", -8.0))
    confidence = Confidence(calibration)
    plain, circles = (confidence.of([SURE] * 5, text) for text in ("Paris is the capital of France.", "so on and " * 30))
    assert plain is not None
    assert circles is not None
    assert circles < 0.1 < 0.7 < plain

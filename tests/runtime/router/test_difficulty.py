"""A difficulty: gains, their reasons, and a file that holds all of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgelm.errors import InvalidRequestError
from edgelm.runtime.router.difficulty import ChanceModel, Difficulty
from edgelm.runtime.router.logistic import Logistic
from edgelm.runtime.router.signals import FEATURES, Signals, signals_of

OPTIONS = "\nA. yes\nB. no"


def seen(text: str) -> Signals:
    return signals_of([{"role": "user", "content": text}])


def made(*names: str, local: tuple[float, ...], cloud: tuple[float, ...], high: float = 1e3) -> ChanceModel:
    n = len(names)
    models = (Logistic(np.zeros(n), np.ones(n), np.array(weights), 0.0) for weights in (local, cloud))
    return ChanceModel(names, np.zeros(n), np.full(n, high), *models)


def test_the_gain_is_what_the_cloud_is_likelier_to_be_right() -> None:
    found = Difficulty(made("words", local=(-1.0,), cloud=(0.0,)), {})
    signals = seen("one two three")
    chances = found.chances(signals)
    assert chances.local == pytest.approx(1 / (1 + 4))  # the odds are 1 / (1 + three words)
    assert chances.cloud == 0.5
    assert found.gain(signals) == pytest.approx(chances.cloud - chances.local)


def test_a_format_with_a_model_of_its_own_is_judged_by_that() -> None:
    general, own = made("words", local=(-1.0,), cloud=(0.0,)), made("negation", local=(0.0,), cloud=(0.0,))
    found = Difficulty(general, {"options": own})
    assert found.gain(seen("Is it?" + OPTIONS)) == 0.0
    assert found.gain(seen("Is it?")) > 0.0


def test_what_lies_beyond_the_examples_is_taken_for_their_end() -> None:
    found = Difficulty(made("words", local=(-1.0,), cloud=(0.0,), high=2.0), {})
    assert found.gain(seen("a word " * 50)) == found.gain(seen("a word " * 5000))


def test_the_features_that_count_most_explain_in_words_and_in_order() -> None:
    names = ("negation", "asks_reason", "parts", "words")
    found = Difficulty(made(*names, local=(-0.5, 1.0, -9.0, 0.0), cloud=(0.0,) * 4), {})
    # the local chance is 0.622; without the reason asked for it were 0.378, without the negation 0.731
    assert found.explain(seen("Why is it not so?")) == ("a reason asked for (-0.245)", "a negation (+0.109)")
    assert found.explain(seen("Why is it not so?"), most=1) == ("a reason asked for (-0.245)",)
    assert found.explain(seen("Tell me.")) == ()


def test_a_file_holds_all_of_it(tmp_path: Path) -> None:
    default = Difficulty.default()
    path = tmp_path / "router.json"
    path.write_text(default.to_json())
    again = Difficulty.read(path)
    assert again.to_json() == default.to_json()
    for text in ("Why?", "How many of 12 are left?" + OPTIONS):
        assert again.gain(seen(text)) == default.gain(seen(text))
        assert again.explain(seen(text)) == default.explain(seen(text))


def test_the_default_says_where_it_comes_from_and_knows_its_ignorance() -> None:
    default = Difficulty.default()
    assert "Apache-2.0" in default.about["source"]
    assert set(default.formats) == {"options"}  # free text was seen in one task only
    assert default.gain(seen("word " * 100)) > default.gain(seen("word " * 10)) > 0
    assert all(0 < chance < 1 for chance in default.chances(seen("")))


def change(*path: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def apply(document: dict[str, Any]) -> None:
        for name in path[:-1]:
            document = document[name]
        document[path[-1]] = to

    return apply


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (change("version", to=2), "version 2"),
        (change("general", "features", to=["zodiac"]), "zodiac"),
        (change("general", "features", to=[]), "features"),
        (change("general", "low", to=[9.0]), "ends before it begins"),
        (change("general", "local", "weights", to=[1.0, 2.0]), "1 finite numbers"),
        (change("general", "local", "weights", to=[float("nan")]), "finite"),
        (change("general", "local", "scale", to=[0.0]), "not above 0"),
        (change("general", "cloud", "bias", to="x"), "no difficulty"),
        (change("formats", to=[]), "no difficulty"),
        (change("general", to=None), "no difficulty"),
    ],
)
def test_a_file_that_is_damaged_is_refused(tmp_path: Path, spoil: Callable[[dict[str, Any]], None], says: str) -> None:
    document = json.loads(Difficulty.default().to_json())
    spoil(document)
    path = tmp_path / "router.json"
    path.write_text(json.dumps(document))
    with pytest.raises(InvalidRequestError, match=says) as caught:
        Difficulty.read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "7", "{}", "[" * 100_000])
def test_what_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="no difficulty"):
        Difficulty.from_json(text)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="cannot be read"):
        Difficulty.read(tmp_path / "none.json")


def test_the_default_knows_every_feature() -> None:
    assert Difficulty.default().formats["options"].names == tuple(FEATURES)

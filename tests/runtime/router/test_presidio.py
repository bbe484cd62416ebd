"""Presidio's patterns and a spaCy model's names, without asking anybody."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import spacy

from edgelm.errors import InvalidRequestError, MissingPackageError
from edgelm.runtime.chat_model import ChatRequest
from edgelm.runtime.router.entities import CoreRecognizer
from edgelm.runtime.router.presidio import PresidioRecognizer
from edgelm.runtime.router.redact import Redactor


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whoever asks the network fails the test, also if they took that for an answer."""
    asked = []

    def refuse(*args: object, **_: object) -> None:
        asked.append(args)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield
    assert asked == []


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real pipeline, whose names are rules."""
    pipeline = spacy.blank("en")
    ruler = pipeline.add_pipe("entity_ruler")
    labels = {"PERSON": "Ada Lovelace", "GPE": "Turin", "ORG": "Analytical Engines", "DATE": "1843"}
    ruler.add_patterns([{"label": label, "pattern": pattern} for label, pattern in labels.items()])  # type: ignore[attr-defined]
    folder = tmp_path_factory.mktemp("spacy") / "names"
    pipeline.to_disk(folder)
    return folder


@pytest.fixture(scope="module")
def english() -> PresidioRecognizer:
    return PresidioRecognizer()


def found(text: str, recognizer: PresidioRecognizer) -> set[tuple[str, str]]:
    return {(text[each.start : each.end], each.kind) for each in recognizer.find(text)}


def test_its_patterns_find_what_they_check(english: PresidioRecognizer) -> None:
    assert found("my card 4012888888881881 ok", english) >= {("4012888888881881", "CREDIT_CARD")}
    assert found("wallet 16Yeky6GMjeNkAiNcBY7ZhrLoMSgg1BoyZ", english) >= {("16Yeky6GMjeNkAiNcBY7ZhrLoMSgg1BoyZ", "CRYPTO")}


def test_what_it_is_not_sure_of_counts_after_a_word_of_its_context(english: PresidioRecognizer) -> None:
    assert found("the number 912803456 is large", english) == set()
    assert ("912803456", "US_PASSPORT") in found("US passport 912803456", english)
    assert found("the number 912803456 is large", PresidioRecognizer(min_score=0)) != set()


def test_languages_choose_the_countries(english: PresidioRecognizer) -> None:
    text = "Steuer-ID 86095742719"
    assert ("86095742719", "DE_TAX_ID") not in found(text, english)
    assert ("86095742719", "DE_TAX_ID") in found(text, PresidioRecognizer(["de"]))


def test_dates_and_pages_are_left_alone_unless_they_are_wanted(english: PresidioRecognizer) -> None:
    text = "On 2024-01-15 see https://example.org/a"
    assert found(text, english) == set()
    assert {kind for _, kind in found(text, PresidioRecognizer(without=()))} >= {"DATE_TIME", "URL"}


def test_a_spacy_model_finds_names(model: Path) -> None:
    text = "In 1843 Ada Lovelace of Analytical Engines went to Turin."
    names = {("Ada Lovelace", "PERSON"), ("Turin", "LOCATION"), ("Analytical Engines", "ORGANIZATION")}
    assert found(text, PresidioRecognizer(model=model)) == names
    assert found(text, PresidioRecognizer(model=str(model), without=["LOCATION", "DATE_TIME"])) == {
        each for each in names if each[0] != "Turin"
    }


def test_it_redacts_beside_the_core(model: Path) -> None:
    text = "Ada Lovelace <ada@example.org>, card 4012888888881881, ask Ada Lovelace"
    redaction = Redactor([CoreRecognizer(), PresidioRecognizer(model=model)]).redact(ChatRequest([{"role": "user", "content": text}]))
    content = redaction.request.messages[0]["content"]
    assert redaction.counts == {"PERSON": 1, "EMAIL": 1, "CARD": 1}
    assert content.split()[0] == content.split()[-1]
    assert redaction.restore(content) == text


@pytest.mark.parametrize("name", ["en_core_no_such_model", "/no/such/folder"])
def test_a_model_that_is_not_there_is_not_fetched(name: str) -> None:
    with pytest.raises(InvalidRequestError, match="give the name of an installed model, or its folder"):
        PresidioRecognizer(model=name)


@pytest.mark.parametrize("score", [-0.1, 1.1, float("nan")])
def test_a_score_that_makes_no_sense_is_refused(score: float) -> None:
    with pytest.raises(InvalidRequestError, match="min_score"):
        PresidioRecognizer(min_score=score)


def test_without_presidio_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    with pytest.raises(MissingPackageError, match=r"edgelm\[redact\]"):
        PresidioRecognizer()

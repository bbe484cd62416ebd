"""Calibration: learns what is there to learn, judges itself on what it has not seen, and says what is wrong with its input."""

from __future__ import annotations

import asyncio
import json
import math
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from byte_model import MakeLLM, says
from numpy.typing import NDArray
from typer.testing import CliRunner

from edgelm.errors import ClosedError, InvalidRequestError, MissingPackageError
from edgelm.runtime.certainty import UNKNOWN, TokenCertainty
from edgelm.runtime.cli import app
from edgelm.runtime.local_model import LocalModel
from edgelm.runtime.router.calibrate import Apart, Evaluation, Fitted, Graded, Table, evaluate, fit, folds_of, within
from edgelm.runtime.router.calibrate_report import html_page
from edgelm.runtime.router.calibration_answers import Answer, Answers, ask, read_answers, save_answers, settings_of
from edgelm.runtime.router.confidence import Confidence, Origin
from edgelm.runtime.router.metrics import auroc
from edgelm.runtime.router.model_digest import model_sha256
from edgelm.runtime.router.target import Target
from edgelm.runtime.router.tasks_file import Task
from edgelm.runtime.sampling import SamplingParams

ORIGIN = Origin("2026-01-02T03:04:05+00:00", "1.0", "cd" * 32, 10, 2, 20, settings_of(SamplingParams(temperature=0)), "cloud-share=0.3")
PARAMS = SamplingParams(temperature=0, max_tokens=128, seed=0)


def token(logprob: float) -> TokenCertainty:
    return TokenCertainty(logprob, max(0.0, 4 + logprob), -logprob)


def answers(n: int = 600, n_kinds: int = 10, seed: int = 1) -> list[Graded]:
    """Answers that are right if one token is sure, among others that say nothing and spoil the mean."""
    random = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        doubt = float(random.exponential(1.0))
        others = [-float(random.exponential(0.5)) for _ in range(int(random.integers(3, 20)))]
        is_right = bool(random.random() < 1 / (1 + math.exp(3 * (doubt - 0.7))))
        rows.append(Graded(f"kind {i % n_kinds}", f"{i}", is_right, tuple(map(token, [-doubt, *others]))))
    return rows


def fitted(rows: list[Graded], target: str = "cloud-share=0.3", grey: float = 0.2) -> Fitted:
    return fit(Table.of(rows, 4), model="<tiny>", model_sha256="ab" * 32, origin=ORIGIN, target=Target.parse(target), grey=grey)


@pytest.fixture(scope="module")
def learned() -> Fitted:
    """What was learned from answers(), for a quarter to the cloud and a fifth in the grey band."""
    return fitted(answers(), "cloud-share=0.25", 0.2)


def test_what_the_mean_hides_is_learned(learned: Fitted) -> None:
    found = learned
    assert [each.apart for each in found.evaluations] == ["kinds", "questions"]
    for each in found.evaluations:
        figures = each.figures
        assert figures["auroc"] > figures["auroc_mean_logprob"] + 0.1
        assert 0.05 < figures["gain_low"] < figures["gain"] < figures["gain_high"]
        assert figures["brier"] < figures["brier_constant"]
        assert figures["aurc"] < figures["aurc_mean_logprob"]
        assert figures["ece"] < 0.1
        assert figures["auroc_early"] > 0.8  # what says it stands first
    fresh = answers(400, seed=2)
    confidence = Confidence(found.calibration)
    p = [confidence.of(row.certainties) for row in fresh]
    assert auroc([one for one in p if one is not None], [row.is_right for row in fresh]) == pytest.approx(
        found.evaluations[0].figures["auroc"], abs=0.05
    )


def test_what_has_nothing_to_do_with_it_is_not_believed() -> None:
    random = np.random.default_rng(3)
    rows = [Graded(row.kind, row.question, bool(random.random() < 0.5), row.certainties) for row in answers()]
    table = Table.of(rows, 4)
    assert 0.4 < auroc(evaluate(table, "kinds").confidence, table.right) < 0.6
    assert 0.4 < auroc(evaluate(table, "questions").confidence, table.right) < 0.6


def test_a_memory_of_questions_helps_nobody() -> None:
    """Many samples of few questions, right or wrong by the question, with certainties that give the question away."""
    random = np.random.default_rng(4)
    rows = []
    for question in range(30):
        mark = -float(random.exponential(1.0))
        is_right = question % 2 == 0
        rows += [Graded(f"k{question % 3}", f"{question}", is_right, (token(mark + 1e-3 * i), token(-0.1))) for i in range(20)]
    (only,) = fitted(rows).evaluations  # three kinds are too few to leave some out
    assert only.apart == "questions"
    assert only.figures["auroc"] < 0.65
    assert only.figures["gain_high"] - only.figures["gain_low"] > 0.05  # thirty questions, not six hundred answers


def test_folds_keep_groups_together_and_are_even() -> None:
    groups = [f"{i % 37}" for i in range(1000)]
    folds = folds_of(groups, 10)
    assert all(len({int(fold) for fold, group in zip(folds, groups, strict=True) if group == one}) == 1 for one in set(groups))
    sizes = np.bincount(folds)
    assert len(sizes) == 10
    assert sizes.max() - sizes.min() <= 1000 // 37 + 1
    assert set(folds_of(["a", "b", "a"], 10).tolist()) == {0, 1}


@pytest.mark.parametrize("apart", ["kinds", "questions"])
def test_no_answer_is_judged_by_what_it_taught(apart: Apart) -> None:
    table = Table.of(answers(), 4)
    one = np.array(table.kinds) == "kind 3" if apart == "kinds" else np.array(table.questions) == "3"
    changed = replace(table, right=table.right ^ one)  # other labels of what is left out together
    before, after = (evaluate(each, apart).confidence for each in (table, changed))
    np.testing.assert_array_equal(after[one], before[one])
    assert not np.array_equal(after[~one], before[~one])


def test_auroc_within_kinds_does_not_see_differences_between_them() -> None:
    kinds = ["a"] * 4 + ["b"] * 4 + ["c"]
    right = np.array([1, 1, 1, 0, 0, 0, 0, 1, 1], np.bool_)
    scores = np.array([5, 5, 5, 5, 1, 1, 1, 1, 0], np.float64)
    assert within(kinds, scores, right) == 0.5
    assert auroc(scores, right) > 0.5
    assert math.isnan(within(["a", "b"], scores[:2], np.array([True, False])))


def test_the_threshold_and_the_band_are_those_of_the_target(learned: Fitted) -> None:
    found = learned
    p, calibration = found.evaluations[0].confidence, found.calibration
    assert (p < calibration.threshold).mean() == pytest.approx(0.25, abs=0.01)
    assert ((p >= calibration.low) & (p < calibration.high)).mean() == pytest.approx(0.2, abs=0.01)
    assert calibration.held_out["threshold.cloud_share"] == pytest.approx(0.25, abs=0.01)
    assert calibration.held_out["kinds.auroc"] == found.evaluations[0].figures["auroc"]


def test_answers_whose_certainty_is_not_known_are_left_out() -> None:
    rows = answers()
    rows[3] = Graded("kind 0", "3", True, (token(-1.0), UNKNOWN))
    table = Table.of(rows, 4)
    assert (len(table.right), table.n_unknown) == (599, 1)


@pytest.mark.parametrize("rows", [[], answers(40), [Graded("k", f"{i}", True, (token(-1.0),)) for i in range(100)]])
def test_too_little_to_learn_from_is_refused(rows: list[Graded]) -> None:
    with pytest.raises(InvalidRequestError, match="are too few to calibrate with; give questions"):
        Table.of(rows, 4)


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str | None] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_stands_alone_and_shows_what_was_found(learned: Fitted) -> None:
    found = learned
    page = Page(html_page(found))
    assert page.tags.count("svg") == 3
    assert not {"script", "link", "img", "tiny"} & set(page.tags)
    assert all(address and address.startswith("#") for address in page.addresses)
    assert "Confidence of <tiny>" in page.text
    assert f"{found.evaluations[0].figures['auroc']:.4g}" in page.text
    assert all(f"kind {i}" in page.text for i in range(10))
    assert "not fitted to: kinds of questions left out whole" in page.text


def task(text: str, answer: str) -> Task:
    return Task("echo", ({"role": "user", "content": text},), answer, "contains")


def parrot(history: list[int] | NDArray[np.int32]) -> NDArray[np.float32]:
    """Answers with the first letter of the question until it has said it three times."""
    said = bytes(int(one) for one in history if one < 256)
    question, _, answer = said.partition(b"\nassistant:")
    logits = np.zeros(258, np.float32)
    logits[256 if len(answer) == 3 else question.partition(b"user:")[2][0]] = 12
    return logits


def test_a_model_is_asked_all_questions_with_their_certainties(make_llm: MakeLLM) -> None:
    llm, _ = make_llm(parrot)
    local = LocalModel(llm)
    told: list[tuple[int, int]] = []
    tasks = [task(f"{chr(97 + i)}?", "x") for i in range(20)]
    try:
        found = asyncio.run(ask(local, tasks, PARAMS, 1, 4, lambda _, done, of: told.append((done, of))))
    finally:
        local.close()
    assert [row.text for row in found] == [chr(97 + i) * 3 for i in range(20)]
    assert [row.question for row in found] == [one.id for one in tasks]
    assert all((len(row.certainties), row.finish) == (4, "stop") for row in found)
    assert told == [(i + 1, 20) for i in range(20)]


def test_samples_differ_and_are_told_apart(make_llm: MakeLLM) -> None:
    llm, _ = make_llm(lambda _: np.zeros(258, np.float32))
    local = LocalModel(llm)
    try:
        found = asyncio.run(ask(local, [task("a", "b")], SamplingParams(temperature=1, top_k=0, max_tokens=5, seed=1), 3))
    finally:
        local.close()
    assert [row.sample for row in found] == [0, 1, 2]
    assert len({row.text for row in found}) == 3


def test_an_error_of_one_question_is_the_error(make_llm: MakeLLM) -> None:
    llm, _ = make_llm(says("x"), n_ctx=64)
    local = LocalModel(llm)
    try:
        with pytest.raises(InvalidRequestError, match="the prompt has"):
            asyncio.run(ask(local, [task("a", "b"), task("y" * 100, "b")], PARAMS))
        local.scheduler.close()
        with pytest.raises(ClosedError):
            asyncio.run(ask(local, [task("a", "b")], PARAMS))
    finally:
        local.close()


def test_answers_are_read_as_they_were_saved(tmp_path: Path) -> None:
    rows = (Answer("q", 0, "text\u2028with\nlines", "stop", (token(-0.25), UNKNOWN)), Answer("q", 1, "", "length", ()))
    save_answers(tmp_path / "a.jsonl", Answers("ab" * 32, settings_of(PARAMS), rows))
    again = read_answers(tmp_path / "a.jsonl")
    assert (again.model_sha256, dict(again.sampling)) == ("ab" * 32, settings_of(PARAMS))
    assert repr(again.rows) == repr(rows)


# The command


def calibrate(*arguments: str | Path) -> str:
    """Run the command in this process; gives its stdout, or raises its error."""
    return CliRunner().invoke(app, ["route", "calibrate", *map(str, arguments)], catch_exceptions=False).stdout


@pytest.fixture
def files(home: Path, tmp_path: Path) -> tuple[Path, Path, Path]:
    """A file that stands for a model, questions, and what the model answered to them."""
    assert home.is_dir()
    model, tasks, saved = tmp_path / "tiny.gguf", tmp_path / "tasks.jsonl", tmp_path / "answers.jsonl"
    model.write_bytes(b"no model is loaded where the answers are known")
    graded = answers(200)
    lines = [{"task": row.kind, "prompt": f"question {row.question}", "answer": "yes", "grader": "contains"} for row in graded]
    tasks.write_text("\n".join(map(json.dumps, lines)))
    rows = [
        Answer(task(f"question {row.question}", "yes").id, 0, "yes" if row.is_right else "no", "stop", row.certainties) for row in graded
    ]
    save_answers(saved, Answers(model_sha256(model), settings_of(PARAMS), tuple(rows)))
    return model, tasks, saved


def test_the_command_calibrates_from_saved_answers(files: tuple[Path, Path, Path], tmp_path: Path, home: Path) -> None:
    model, tasks, saved = files
    report = tmp_path / "report.html"
    out = calibrate(model, tasks, "--answers", saved, "--target", "cloud-share=0.4", "--report", report)
    assert "kinds of questions left out whole" in out
    assert "gain" in out
    assert "40.0% to the cloud" in out
    (written,) = (home / "calibrations").iterdir()
    assert str(written) in out
    assert json.loads(written.read_text())["model_sha256"] == model_sha256(model)
    assert report.read_text().startswith("<!DOCTYPE html>")
    with pytest.raises(InvalidRequestError, match="is there already"):
        calibrate(model, tasks, "--answers", saved)


@pytest.mark.parametrize(
    ("arguments", "says_what"),
    [
        (["--target", "speed=3"], "write cloud-share=S, accuracy=A or cost=C"),
        (["--target", "accuracy=0.8"], "give --cloud-accuracy"),
        (["--target", "accuracy=0.99", "--cloud-accuracy", "0.5"], "cannot be reached"),
        (["--samples", "2"], "give --temperature"),
        (["--temperature", "0.5"], "drawn otherwise (temperature 0)"),
        (["--report", "nowhere/report.html"], "is no folder"),
    ],
)
def test_what_makes_no_sense_is_said(arguments: list[str], says_what: str, files: tuple[Path, Path, Path]) -> None:
    model, tasks, saved = files
    with pytest.raises(InvalidRequestError, match=re.escape(says_what)):
        calibrate(model, tasks, "--answers", saved, *arguments)


def test_without_matplotlib_a_report_is_refused_before_the_work(
    files: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tasks, saved = files
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    saved.write_text("no answers: they are not read yet")
    with pytest.raises(MissingPackageError, match=r"edgelm\[route\]"):
        calibrate(model, tasks, "--answers", saved, "--report", tmp_path / "report.html")


def test_answers_of_another_model_or_to_other_questions_are_refused(files: tuple[Path, Path, Path]) -> None:
    model, tasks, saved = files
    tasks.write_text(tasks.read_text() + '\n{"task": "t", "prompt": "something else", "answer": "x"}')
    with pytest.raises(InvalidRequestError, match="no answer, or too few, to 1 questions such as 'something else'"):
        calibrate(model, tasks, "--answers", saved)
    model.write_bytes(b"another model")
    with pytest.raises(InvalidRequestError, match="holds answers of the model"):
        calibrate(model, tasks, "--answers", saved)


def test_an_evaluation_knows_what_it_is_compared_with() -> None:
    table = Table.of(answers(100), 4)
    found = Evaluation(table, "questions", np.full(100, 0.5), np.full(100, 0.5))
    np.testing.assert_allclose(found.mean_logprob, [np.mean([one.logprob for one in row.certainties]) for row in answers(100)])
    assert found.figures["auroc"] == 0.5

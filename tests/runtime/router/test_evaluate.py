"""Evaluation: better than length on tasks held out, between chance and an oracle, and honest about what it cannot tell."""

from __future__ import annotations

import gzip
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from edgelm.errors import InvalidRequestError, MissingPackageError
from edgelm.runtime.cli import app
from edgelm.runtime.router.costs import Prices, cost_of
from edgelm.runtime.router.difficulty import Difficulty
from edgelm.runtime.router.evaluate import LENGTH, ORACLE, RANDOM, ROUTER, Evaluation, Figures, Scope, evaluate
from edgelm.runtime.router.evaluation_report import html, sections, to_json
from edgelm.runtime.router.pairs import Pair, read_pairs
from edgelm.runtime.router.train import train

EXCERPT = Path(__file__).parents[2] / "data" / "routing" / "pairs.jsonl.gz"


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    return read_pairs(EXCERPT)


@pytest.fixture(scope="module")
def found(pairs: list[Pair]) -> Evaluation:
    return evaluate(pairs, rounds=40)


def of(scope: Scope, way: str) -> Figures:
    return next(figures for figures in scope.figures if figures.way == way)


def pair(task: str, text: str, weak: float, strong: float) -> Pair:
    return Pair(task, ({"role": "user", "content": text},), weak, strong)


def test_on_tasks_held_out_the_router_chooses_better_than_the_length(found: Evaluation) -> None:
    router, length = of(found.overall, ROUTER), of(found.overall, LENGTH)
    assert found.overall.n_tasks == 58
    assert router.apgr.value > 0.62
    assert found.overall.lead.value == pytest.approx(router.apgr.value - length.apgr.value)
    assert found.overall.lead.value > 0.04
    assert router.auroc.value > length.auroc.value
    assert router.aurc.value < length.aurc.value


def test_free_text_is_chosen_no_worse_than_by_length(found: Evaluation) -> None:
    (gsm8k,) = (scope for scope in found.families if scope.name == "gsm8k")
    assert of(gsm8k, ROUTER).apgr.value >= of(gsm8k, LENGTH).apgr.value - 0.01
    assert gsm8k.drawn == "questions"


def test_all_ways_lie_between_chance_and_the_oracle(found: Evaluation) -> None:
    for scope in (found.overall, *found.families):
        oracle, random = of(scope, ORACLE), of(scope, RANDOM)
        assert (random.apgr.value, random.auroc.value, random.cpt[0].value) == (0.5, 0.5, 0.5)
        assert random.aurc.value == pytest.approx(1 - scope.weak)
        assert oracle.auroc.value == 1.0
        for way in (ROUTER, LENGTH):
            figures = of(scope, way)
            assert random.apgr.value < figures.apgr.value < oracle.apgr.value
            assert oracle.aurc.value < figures.aurc.value < random.aurc.value
            assert oracle.cpt[0].value < figures.cpt[0].value <= figures.cpt[1].value


def test_intervals_hold_their_figures_and_are_of_whole_tasks(found: Evaluation) -> None:
    assert found.overall.drawn == "tasks"
    for estimate in (of(found.overall, ROUTER).apgr, of(found.overall, ROUTER).auroc, found.overall.lead):
        assert estimate.low < estimate.value < estimate.high


def test_a_task_of_which_the_cloud_gains_hardly_anything_has_no_shares(found: Evaluation) -> None:
    mathematics = next(scope for scope in found.tasks if scope.name == "mmlu/high_school_mathematics")
    assert mathematics.figures == ()
    assert math.isnan(mathematics.lead.value)
    assert any("mmlu/high_school_mathematics" in note and "grading" in note for note in found.notes)


def test_the_thresholds_send_as_many_calls_as_they_should(found: Evaluation) -> None:
    for threshold, cpt in zip(found.thresholds, of(found.overall, ROUTER).cpt, strict=True):
        assert (found.ways[0].scores >= threshold).mean() == pytest.approx(cpt.value, abs=2e-3)


def test_a_router_judged_on_what_it_learned_from_is_said_to_remember(pairs: list[Pair]) -> None:
    learned = train(pairs)
    assert "these very pairs" in evaluate(pairs, learned, rounds=2, by_task=False).notes[0]
    others = evaluate(pairs[1:], learned, rounds=2, by_task=False)
    assert "may have been trained" in others.notes[0]
    assert others.how == "a router as it is"


def test_costs_are_of_the_calls_made() -> None:
    rows = [pair(f"task-{n % 5}", "x" * (4000 if n < 20 else 400), float(n >= 20), 1.0) for n in range(40)]
    found = evaluate(rows, Difficulty.default(), rounds=2)
    oracle = next(way for way in found.ways if way.name == ORACLE)
    cost = cost_of(oracle, found.columns, Prices(2.0, 10.0, 100))
    assert cost.all_cloud == pytest.approx(550 * 2e-3 + 1.0)  # of a thousand: tokens read, then a hundred written
    assert cost.levels == pytest.approx([250 * (2e-3 + 1e-3), 400 * (2e-3 + 1e-3)])  # half and four fifths of the long ones
    with pytest.raises(InvalidRequestError, match="below 0"):
        Prices(-1.0, 1.0)


def test_pairs_that_tell_nothing_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="no pairs"):
        evaluate([])
    with pytest.raises(InvalidRequestError, match="wrong way round"):
        evaluate([pair(f"task-{n % 3}", "x", 1.0, 0.0) for n in range(30)])
    with pytest.raises(InvalidRequestError, match="1 task"):
        evaluate([pair("one", "x", 0.0, 1.0) for _ in range(30)])


def test_the_json_has_no_nan_and_the_curves_their_ends(found: Evaluation) -> None:
    document = json.loads(to_json(found, Prices(1.0, 2.0)), parse_constant=lambda name: pytest.fail(name))
    assert document["scopes"][0]["ways"][0]["apgr"]["value"] == of(found.overall, ROUTER).apgr.value
    for curve in document["curves"].values():
        assert (curve[0], curve[-1]) == pytest.approx((found.overall.weak, found.overall.strong))


def test_the_page_needs_nothing_else_and_escapes_names() -> None:
    pytest.importorskip("matplotlib")
    rows = [pair(f"<b>{n % 5}", "why " * (n % 7), float(n % 2), 1.0) for n in range(120)]
    page = html(evaluate(rows, Difficulty.default(), rounds=2))
    assert "<b>" not in page
    assert "&lt;b&gt;0" in page
    assert page.count("<svg") == 3
    assert not any(mark in page for mark in ("http:", "https:", "<script", "@import"))


def test_all_tables_have_as_many_cells_as_columns(found: Evaluation) -> None:
    tables = sections(found, Prices(1.0, 2.0))
    assert [len(tables[-1].rows), tables[-1].title] == [58, "Each task"]
    assert all(len(row) == len(table.columns) for table in tables for row in table.rows)


def test_the_commands_train_judge_and_refuse(tmp_path: Path) -> None:
    few, out, page = tmp_path / "pairs.jsonl", tmp_path / "router.json", tmp_path / "page.html"
    few.write_bytes(b"".join(gzip.decompress(EXCERPT.read_bytes()).splitlines(keepends=True)[::4]))
    run = CliRunner().invoke
    trained = run(app, ["route", "train", str(few), "--out", str(out), "--about", "a test", "--without", "mmlu/virology"])
    assert trained.exit_code == 0, trained.output
    learned = Difficulty.read(out)
    assert (learned.about["source"], learned.about["without"]) == ("a test", "mmlu/virology")
    assert "of 57 tasks" in trained.output
    judged = run(app, ["route", "eval", str(few), "--router", str(out), "--rounds", "3", "--price-in", "1", "--price-out", "2"])
    assert judged.exit_code == 0, judged.output
    assert "may have been trained" in judged.output
    assert "An estimate: 1 for a million tokens" in judged.output
    as_json = run(app, ["route", "eval", str(few), "--rounds", "2", "--json", "--html", str(page)])
    assert json.loads(as_json.stdout)["how"].startswith("cross-validated")
    assert page.read_text().endswith("</html>")
    for wrong in (["route", "train", str(few), "--out", str(out)], ["route", "eval", str(few), "--price-in", "1"]):
        assert isinstance(run(app, wrong).exception, InvalidRequestError)


def test_without_matplotlib_a_page_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    found = CliRunner().invoke(app, ["route", "eval", str(tmp_path / "not read yet"), "--html", str(tmp_path / "page.html")])
    assert isinstance(found.exception, MissingPackageError)


def test_every_estimate_of_every_scope_is_finite(found: Evaluation) -> None:
    for scope in (found.overall, *found.families, *found.tasks):
        for figures in scope.figures:
            assert np.isfinite([figures.apgr.value, *(cpt.value for cpt in figures.cpt), figures.auroc.value, figures.aurc.value]).all()

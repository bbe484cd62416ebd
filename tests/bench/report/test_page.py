from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from bench_records import MODEL, NOT_MEASURED, load_record, run_record, sustain_record

from edgelm.bench.report.page import html_page
from edgelm.errors import InvalidRequestError

VOID = {"meta", "br", "img", "link", "input", "hr", "use"}


class Page(HTMLParser):
    """What a page holds, and whether its elements close as they opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.texts: list[str] = []
        self.figures: dict[str, str] = {}
        self._open: list[str] = []
        self._figure = ""
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self._open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "action", "srcset", "poster", "data"):
                self.references.append(value or "")
            assert not name.startswith("on")
        if tag == "figure":
            self._figure = dict(attributes)["id"] or ""
            self.figures[self._figure] = ""
        if tag == "svg":
            self.figures[self._figure] += "<svg>"

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag
        if tag == "figure":
            self._figure = ""

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self._figure:
            self.figures[self._figure] += data


FULL = html_page([run_record(prompts=(128, 512), repeat=3)])


def test_the_page_needs_nothing_else() -> None:
    page = Page(FULL)
    assert not {"script", "link", "iframe", "img", "object", "embed"} & set(page.tags)
    assert all(reference.startswith("#") for reference in page.references)
    assert re.findall(r"(?:https?:)?//\w", FULL) == []
    assert "@import" not in FULL
    assert "@font-face" not in FULL
    assert not re.search(r"url\((?!#)", FULL)


def test_references_within_the_page_lead_somewhere_and_only_there() -> None:
    page = Page(FULL)
    assert len(page.ids) == len(set(page.ids))
    wanted = {reference[1:] for reference in page.references} | set(re.findall(r"url\(#([^)]+)\)", FULL))
    assert wanted <= set(page.ids)


def test_every_plot_of_a_run_is_drawn() -> None:
    figures = Page(FULL).figures
    for name in ("speed", "ttft", "gaps", "watts", "kl", "roofline-0"):
        assert "<svg>" in figures[f"plot-{name}"]
    assert "edgebench sustain MODEL does that" in figures["plot-sustain"]
    assert "cpu, 2 threads" in figures["plot-speed"]
    assert "milliseconds" in figures["plot-gaps"]


def test_plots_take_their_colours_from_the_page() -> None:
    svgs = re.findall(r"<svg.*?</svg>", FULL, flags=re.DOTALL)
    assert len(svgs) == 6
    for svg in svgs:
        assert re.findall(r"#[0-9a-fA-F]{6}\b", svg) == []
        assert "var(--ink)" in svg
        assert 'viewBox="' in svg
        assert not re.search(r'<svg[^>]* width="', svg)
    assert "prefers-color-scheme: dark" in FULL


def test_a_plot_without_data_says_what_is_missing_and_how_to_get_it() -> None:
    bare = Page(html_page([run_record(("cpu",), (2,), depths=(1024,), power=False, quality=False, limits=False, repeat=2)])).figures
    nothing = Page(html_page([run_record((), (2,), power=False, quality=False, limits=False)])).figures
    for figure, words in (
        (bare["plot-watts"], f"Watts were not measured ({NOT_MEASURED})"),
        (bare["plot-kl"], "No energy was measured"),
        (bare["plot-roofline-0"], "--no-roofline"),
        (bare["plot-ttft"], "--prompt 128,512,2048 --depth 0"),
        (nothing["plot-speed"], "run edgebench run MODEL again"),
        (nothing["plot-gaps"], "--generate 128"),
    ):
        assert "<svg>" not in figure
        assert words in figure


def test_load_and_sustain_have_their_plots() -> None:
    figures = Page(html_page([load_record(), sustain_record(), sustain_record(power=False, id="0123456789ab")])).figures
    assert "<svg>" in figures["plot-load-0"]
    trace = figures["plot-sustain-1-0"]
    for words in ("tokens/s", "MHz", "°C", "W", "minutes", "THROTTLED"):
        assert words in trace
    assert "Not known here: watts" in figures["plot-sustain-2-0"]


def test_names_from_files_are_text() -> None:
    name = "<script>alert(1)</script> & $x_1$ \u6a21\u578b.gguf"
    evil = replace(run_record(("cpu",), (2,)), model=replace(MODEL, name=name))
    text = html_page([evil, replace(run_record(("cpu",), (2,)), id="0123456789ab")])
    assert "<script" not in text
    page = Page(text)
    assert f"{name} on AMD EPYC 7B13" in page.texts
    assert any("$x_1$" in words for words in page.figures.values())  # a label, not a formula


def test_several_records_share_the_plots() -> None:
    other = run_record(("cpu",), (2,), scale=1.2, seed=1, model=replace(MODEL, name="other.gguf"))
    page = Page(html_page([run_record(("cpu",), (2,)), other]))
    assert "cpu, 2 threads, other.gguf" in page.figures["plot-speed"]
    assert "2 records of edgebench" in page.texts


def test_the_same_records_give_the_same_page() -> None:
    assert html_page([run_record(prompts=(128, 512), repeat=3)]) == FULL


def test_no_record_is_no_page() -> None:
    with pytest.raises(InvalidRequestError, match="at least one record"):
        html_page([])

"""`edgelm route eval`: what a router gains and costs on judged pairs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgelm.errors import InvalidRequestError
from edgelm.runtime.commands.route_train import Pairs, Without

if TYPE_CHECKING:
    from edgelm.runtime.router.costs import Prices
    from edgelm.runtime.router.report import Section


def evaluate(
    pairs: Pairs,
    router: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Judge this one as it is.", show_default="learned anew, tasks held out")
    ] = None,
    without: Without = None,
    price_in: Annotated[float | None, typer.Option(metavar="PRICE", help="Of a million tokens that the cloud reads.", min=0)] = None,
    price_out: Annotated[float | None, typer.Option(metavar="PRICE", help="Of a million tokens that the cloud writes.", min=0)] = None,
    answer_tokens: Annotated[int, typer.Option(help="Tokens of an answer, for its price.", min=0)] = 300,
    rounds: Annotated[int, typer.Option(help="Samples for the intervals.", min=1)] = 500,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with plots too.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a page that is there.")] = False,
) -> None:
    """Judge a router on judged pairs: the gap it recovers by share of calls, beside length, chance and an oracle."""
    from edgelm.runtime.commands.tables import print_facts
    from edgelm.runtime.new_file import check_new_file
    from edgelm.runtime.router import evaluation_report
    from edgelm.runtime.router.difficulty import Difficulty
    from edgelm.runtime.router.evaluate import evaluate as judge
    from edgelm.runtime.router.json_file import write_text
    from edgelm.runtime.router.pairs import read_pairs
    from edgelm.runtime.router.pairs import without as pairs_without
    from edgelm.runtime.router.report import check_plots

    if html is not None:
        check_new_file(html, [pairs, *([router] if router else [])], overwrite)
        check_plots()
    prices = _prices(price_in, price_out, answer_tokens)
    judged = None if router is None else Difficulty.read(router)
    rows = pairs_without(read_pairs(pairs), without or [])
    with working("judging"):
        found = judge(rows, judged, rounds)
        page = None if html is None else evaluation_report.html(found, prices)
    if json:
        print(evaluation_report.to_json(found, prices))
    else:
        print_facts(evaluation_report.facts(found))
        print_sections(evaluation_report.sections(found, prices), found.notes)
    if html is not None and page is not None:
        write_text(html, page, mode=0o666)
        print(f"\n{html}: the page", file=sys.stderr if json else sys.stdout)


def print_sections(sections: Sequence[Section], notes: Sequence[str]) -> None:
    """Print notes and tables."""
    from edgelm.runtime.commands.tables import print_table

    for note in notes:
        print(f"note: {note}")
    for section in sections:
        print(f"\n{section.title}")
        print_table(section.columns, section.rows)
        if section.remark:
            print(section.remark)


@contextmanager
def working(what: str) -> Iterator[None]:
    """Says on a terminal's stderr what takes so long."""
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


def _prices(price_in: float | None, price_out: float | None, answer_tokens: int) -> Prices | None:
    from edgelm.runtime.router.costs import Prices

    if price_in is None and price_out is None:
        return None
    if price_in is None or price_out is None:
        raise InvalidRequestError("a cost needs both prices; give --price-in and --price-out")
    return Prices(price_in, price_out, answer_tokens)

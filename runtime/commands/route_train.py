"""`edgelm route train`: a router learned from judged pairs, and how it does on tasks that it has not seen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Pairs = Annotated[
    Path, typer.Argument(help='A .jsonl or .jsonl.gz of {"task", "prompt" or "messages", "weak", "strong"}, the last two from 0 to 1.')
]
Without = Annotated[list[str] | None, typer.Option("--without", metavar="TASK", help="Leave a task out; may be given several times.")]


def train(
    pairs: Pairs,
    out: Annotated[Path, typer.Option("--out", help="The new file, for --router.")],
    without: Without = None,
    about: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Where the pairs come from, and under which licence; kept in the file.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Learn from judged pairs which questions gain by asking the cloud, and judge that on whole tasks held out."""
    from edgelm.runtime.commands.route_eval import print_sections, working
    from edgelm.runtime.commands.tables import print_facts
    from edgelm.runtime.new_file import check_new_file
    from edgelm.runtime.router.evaluate import evaluate
    from edgelm.runtime.router.evaluation_report import facts, sections
    from edgelm.runtime.router.json_file import write_text
    from edgelm.runtime.router.pairs import read_pairs
    from edgelm.runtime.router.pairs import without as pairs_without
    from edgelm.runtime.router.train import train as learn

    check_new_file(out, [pairs], overwrite)
    rows = pairs_without(read_pairs(pairs), without or [])
    with working("judging on tasks held out"):
        found = evaluate(rows, rounds=200, by_task=False)
    learned = learn(rows, {"pairs": pairs.name, "without": ", ".join(without or []) or "nothing", "source": about or "not said"})
    print_facts(facts(found))
    print_sections(sections(found), found.notes)
    write_text(out, learned.to_json(), mode=0o666)
    print(f"\n{out}: learned from all {len(rows):,} pairs")

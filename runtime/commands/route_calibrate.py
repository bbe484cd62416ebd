"""`edgelm route calibrate`: how far a model's answers can be trusted, learned from questions whose answers are known."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgelm.errors import InvalidRequestError
from edgelm.runtime.commands import options
from edgelm.version import __version__

if TYPE_CHECKING:
    from edgelm.runtime.llm import LLM
    from edgelm.runtime.router.calibrate import Fitted, Graded
    from edgelm.runtime.router.calibration_answers import Answers
    from edgelm.runtime.router.confidence import Origin
    from edgelm.runtime.router.target import Target
    from edgelm.runtime.router.tasks_file import Task
    from edgelm.runtime.sampling import SamplingParams

_TARGET = "Target"
_AT_ONCE = 32  # questions


def calibrate(
    model: options.Model,
    tasks: Annotated[
        Path, typer.Argument(help='JSON lines of "task" (the kind), "prompt" or "messages", "answer", and maybe "choices", "grader".')
    ],
    out: Annotated[Path | None, typer.Option(help="The new file.", show_default="where the router looks for it")] = None,
    target: Annotated[
        str,
        typer.Option(
            metavar="NAME=VALUE",
            help="cloud-share=0.3: leave that share to the cloud. accuracy=0.8: be right so often. "
            "cost=0.05: a call of the cloud costs so much of what a wrong answer costs.",
            rich_help_panel=_TARGET,
        ),
    ] = "cloud-share=0.3",
    cloud_accuracy: Annotated[
        float | None,
        typer.Option(help="How often the cloud is right, assumed or measured.", min=0.0, max=1.0, rich_help_panel=_TARGET),
    ] = None,
    grey: Annotated[
        float,
        typer.Option(help="Share of answers about the threshold that are worth more thought.", min=0.0, max=1.0, rich_help_panel=_TARGET),
    ] = 0.3,
    early: Annotated[int, typer.Option(help="Tokens that the early confidence looks at.", min=1)] = 16,
    answers: Annotated[
        Path | None, typer.Option(help="A file of the model's answers: kept there, and taken from there if it exists already.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="An HTML page with plots.")] = None,
    samples: Annotated[int, typer.Option(help="Answers to each question.", min=1)] = 1,
    verify: Annotated[
        bool, typer.Option("--verify", help="Ask the model about each of its answers, too; used later where that is found to help.")
    ] = False,
    temperature: options.Temperature = 0.0,
    max_tokens: options.MaxTokens = 128,
    seed: options.Seed = 0,
    backend: options.Backend = None,
    backend_option: options.BackendOption = None,
    threads: options.Threads = None,
    ctx: options.Ctx = None,
    precision: options.Precision = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there; answers are kept.")] = False,
) -> None:
    """Learn from questions with known answers how likely the model is right, and from which confidence on a cloud need not be asked."""
    from edgelm.runtime.commands.loading import load, locate
    from edgelm.runtime.model_folder import short_name
    from edgelm.runtime.new_file import check_new_file
    from edgelm.runtime.router.calibrate import Table, fit
    from edgelm.runtime.router.calibrate_report import html_page
    from edgelm.runtime.router.calibration_answers import read_answers, save_answers, settings_of
    from edgelm.runtime.router.confidence import calibration_folder, calibration_path, digest_memory
    from edgelm.runtime.router.json_file import write_text
    from edgelm.runtime.router.model_digest import model_sha256
    from edgelm.runtime.router.report import check_plots
    from edgelm.runtime.router.target import Target
    from edgelm.runtime.router.tasks_file import read_tasks
    from edgelm.runtime.sampling import SamplingParams
    from edgelm.runtime.settings import read_settings

    wanted = Target.parse(target)
    if wanted.kind != "cloud-share" and cloud_accuracy is None:
        raise InvalidRequestError(f"the target {wanted} needs the accuracy of the cloud; give --cloud-accuracy, assumed or measured")
    if samples > 1 and temperature == 0.0:
        raise InvalidRequestError(f"{samples} samples at temperature 0 are all the same; give --temperature, such as 0.8, or one sample")
    params = SamplingParams(temperature=temperature, max_tokens=max_tokens, seed=seed)
    questions = read_tasks(tasks)
    path = locate(model)
    home = read_settings().home
    sha256 = model_sha256(path, digest_memory(home))
    if out is None:
        out = calibration_path(calibration_folder(home), sha256)
        out.parent.mkdir(parents=True, exist_ok=True)
    for file in (out, *([report] if report else [])):
        check_new_file(file, [tasks, path, *([answers] if answers else [])], overwrite)
    if report is not None:
        check_plots()
    if answers is not None and answers.exists():
        found = read_answers(answers)
        _check_same(answers, found, sha256, settings_of(params))
    else:
        if answers is not None:
            check_new_file(answers, [tasks, path], overwrite=False)
        found = _ask(load(str(path), backend, threads, ctx, precision, backend_option or ()), questions, params, samples, sha256, verify)
        if answers is not None:
            save_answers(answers, found)
    rows = _graded(found, questions, samples, answers)
    table = Table.of(rows, early)
    origin = _origin(tasks, questions, found, len(rows), wanted, cloud_accuracy)
    fitted = fit(table, model=short_name(str(path)), model_sha256=sha256, origin=origin, target=wanted, grey=grey)
    fitted.calibration.save(out)
    if report is not None:
        write_text(report, html_page(fitted), mode=0o666)
    _print(fitted, out, report)


def _ask(llm: LLM, questions: Sequence[Task], params: SamplingParams, samples: int, sha256: str, verifies: bool) -> Answers:
    """Ask the model all of them, with a bar on stderr; closes it."""
    from edgelm.runtime.commands.work_bar import work_bar
    from edgelm.runtime.local_model import LocalModel
    from edgelm.runtime.router.calibration_answers import Answers, ask, settings_of
    from edgelm.runtime.scheduler import Limits

    local = LocalModel(llm, Limits(n_active=_AT_ONCE, n_waiting=_AT_ONCE * samples))
    try:
        with work_bar() as say:
            rows = asyncio.run(ask(local, questions, params, samples, _AT_ONCE, say, verifies))
    finally:
        local.close()
    return Answers(sha256, settings_of(params), rows)


def _check_same(file: Path, found: Answers, sha256: str, sampling: Mapping[str, float | int | None]) -> None:
    if found.model_sha256 != sha256:
        raise InvalidRequestError(
            f"{file} holds answers of the model {found.model_sha256[:12]}, and this one is {sha256[:12]}; give another file"
        )
    if dict(found.sampling) != dict(sampling):
        other = [f"{name} {found.sampling.get(name)}" for name in sampling if found.sampling.get(name) != sampling[name]]
        raise InvalidRequestError(f"{file} holds answers drawn otherwise ({', '.join(other)}); give the same settings, or another file")


def _graded(found: Answers, questions: Sequence[Task], samples: int, file: Path | None) -> list[Graded]:
    from edgelm.runtime.router.calibrate import Graded

    answers = {(row.question, row.sample): row for row in found.rows}
    missing = [task for task in questions for i in range(samples) if (task.id, i) not in answers]
    if missing:
        question = missing[0].messages[-1]["content"]
        raise InvalidRequestError(
            f"{file} holds no answer, or too few, to {len(missing)} questions such as {question!r:.80}; give another file"
        )
    return [
        Graded(task.task, task.id, task.grade(row.text), row.certainties, row.text, row.said_yes)
        for task in questions
        for row in (answers[task.id, i] for i in range(samples))
    ]


def _origin(tasks: Path, questions: Sequence[Task], found: Answers, n_answers: int, target: Target, cloud_accuracy: float | None) -> Origin:
    from edgelm.runtime.router.confidence import Origin

    return Origin(
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        edgelm=__version__,
        tasks_sha256=hashlib.sha256(tasks.read_bytes()).hexdigest(),
        n_questions=len(questions),
        n_kinds=len({task.task for task in questions}),
        n_answers=n_answers,
        sampling=found.sampling,
        target=str(target),
        cloud_accuracy=cloud_accuracy,
    )


def _print(fitted: Fitted, out: Path, report: Path | None) -> None:
    from edgelm.runtime.commands.tables import print_facts
    from edgelm.runtime.router.calibrate_report import APART

    calibration = fitted.calibration
    for each in fitted.evaluations:
        f = each.figures
        print(f"Held out, {APART[each.apart]}:")
        print_facts(
            [
                ("  answers", f"{f['n']:.0f}, {f['accuracy']:.1%} right"),
                ("  AUROC", f"{f['auroc']:.3f}, of the mean log probability {f['auroc_mean_logprob']:.3f}"),
                ("  gain", f"{f['gain']:+.3f}, 95% interval {f['gain_low']:+.3f} to {f['gain_high']:+.3f}"),
                (
                    "  AUROC within kinds",
                    f"{f['auroc_within_kinds']:.3f}, of the mean log probability {f['auroc_within_kinds_mean_logprob']:.3f}",
                ),
                (
                    f"  AUROC after {each.table.n_early} tokens",
                    f"{f['auroc_early']:.3f}, of the mean log probability {f['auroc_early_mean_logprob']:.3f}",
                ),
                ("  calibration error", f"{f['ece']:.3f}; Brier {f['brier']:.3f}, of the mean accuracy {f['brier_constant']:.3f}"),
                ("  risk-coverage area", f"{f['aurc']:.3f}, of the mean log probability {f['aurc_mean_logprob']:.3f}"),
            ]
        )
    held_out = calibration.held_out
    kept = f", {held_out['threshold.kept_accuracy']:.1%} of the others right" if "threshold.kept_accuracy" in held_out else ""
    print(
        f"Threshold {calibration.threshold:.3f} for {calibration.origin.target}: {held_out['threshold.cloud_share']:.1%} to the cloud{kept}"
    )
    if "verification.gain" in held_out:
        gain, low, high = (held_out[f"verification.{name}"] for name in ("gain", "low", "high"))
        used = "used" if calibration.verification is not None else "not used"
        print(f"Asking the model about its own answers: AUROC {gain:+.3f}, 95% interval {low:+.3f} to {high:+.3f}; {used}")
    print(f"More thought may help between {calibration.low:.3f} and {calibration.high:.3f}")
    print(out)
    if report is not None:
        print(report)

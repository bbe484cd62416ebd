"""A plan of mixed precision for a model: measured damages of every matrix in every format, and the choice that a budget allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgelm.errors import InvalidRequestError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgelm.quant.fingerprint import Fingerprint
    from edgelm.quant.memory_limit import MemoryLimit
    from edgelm.quant.mixed_precision import Budget, Plan, TensorOptions
    from edgelm.quant.model_file import ModelFile
    from edgelm.quant.quantize import Say
    from edgelm.quant.row_threads import RowThreads
    from edgelm.quant.tensor_formats import FormatRules

_PROBES, _PROBE_TOKENS = 2, 256  # windows, and tokens of each: minutes for a small model, and enough to rank formats by


def damages_path(target: Path) -> Path:
    """Where the damages behind a file's plan are kept."""
    return target.with_name(f"{target.name}.damages.json")


@dataclass(frozen=True)
class Planner:
    """Makes plans for one model.

    Attributes:
        file: the model.
        windows: calibration tokens [n_windows, n]; some of them are used.
        damages: file in which the measured damages are kept: read where it is there, else written.
        fingerprint: of what the damages depend on.
        threads: that compute.
        say: told of progress.
        memory: looked at after each block that was measured.
        restart: discard what an interrupted measurement has left.
    """

    file: ModelFile
    windows: NDArray[np.int32]
    damages: Path
    fingerprint: Fingerprint
    threads: RowThreads
    say: Say
    memory: MemoryLimit
    restart: bool

    def plan(self, budget: Budget, named: FormatRules, fixed_bytes: int) -> Plan:
        """The formats of least damage within the budget.

        Args:
            named: formats that were asked for by name: of the embedding, the output layer, or by a pattern.
            fixed_bytes: of the file beside its matrices.

        Raises:
            InvalidRequestError: no choice keeps the budget, or the damages were measured on something else.
            InsufficientMemoryError: more memory is needed than is allowed; the blocks measured so far are kept.
            ModelFileError: the damages cannot be read or written.
        """
        from edgelm.quant.mixed_precision import choose_formats

        return choose_formats([_narrowed(options, named) for options in self._options()], budget, fixed_bytes)

    def _options(self) -> Sequence[TensorOptions]:
        from edgelm.backends.block_steps import BlockSteps
        from edgelm.quant.format_trial import FormatTrials
        from edgelm.quant.sensitivity import CANDIDATES, measure_options
        from edgelm.quant.sensitivity_file import read_options, write_options
        from edgelm.quant.work_folder import open_or_create

        if self.damages.exists():
            return read_options(self.damages, self.fingerprint)
        probes = self.windows[:: max(1, len(self.windows) // _PROBES)][:_PROBES, :_PROBE_TOKENS]
        with open_or_create(self.damages, self.fingerprint, self.restart) as work:
            model, trials = BlockSteps(self.file, probes.shape[1], self.threads), FormatTrials(CANDIDATES, self.threads)
            options = measure_options(model, self.file.tensors, probes, trials, work, self.say, self._check_memory)
            write_options(self.damages, options, self.fingerprint)
            work.remove()
        return options

    def _check_memory(self) -> None:
        self.file.drop_pages()
        self.memory.check()


def _narrowed(options: TensorOptions, named: FormatRules) -> TensorOptions:
    """The options that are left where a format was asked for by name."""
    wanted = named.named(options.name)
    if wanted is None:
        return options
    choices = tuple(choice for choice in options.choices if choice.format == wanted.name)
    if not choices:
        there = ", ".join(choice.format for choice in options.choices)
        raise InvalidRequestError(f"{options.name} cannot be planned as {wanted.name}; choose one of {there}")
    return replace(options, choices=choices)


def choose_budget(bits_per_weight: float | None, size: int | None, max_kl: float | None) -> Budget | None:
    """The one budget that was given.

    Raises:
        InvalidRequestError: there are several, or one is not above zero.
    """
    from edgelm.quant.mixed_precision import Budget, BudgetKind

    kinds: Mapping[BudgetKind, float | None] = {"bits per weight": bits_per_weight, "file size": size, "error": max_kl}
    given = [Budget(kind, amount) for kind, amount in kinds.items() if amount is not None]
    if len(given) > 1:
        raise InvalidRequestError("give one of bits per weight, size and greatest divergence")
    if given and not given[0].amount > 0:
        raise InvalidRequestError(f"{given[0]} is no budget; give a number above zero")
    return given[0] if given else None

"""The work of quantizing one model, once it is clear what is wanted: check the source, plan, quantize, write, report."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgelm.runtime.calibration_windows import batch_size, calibration_windows
from edgelm.runtime.quantize_report import QuantizeReport, TensorReport, peak_bytes, tensor_reports, together
from edgelm.version import __version__

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgelm.quant.channel_scaling import ChannelScaling
    from edgelm.quant.goals import Goal
    from edgelm.quant.input_statistics import Calibration
    from edgelm.quant.matrix import Method
    from edgelm.quant.mixed_precision import Budget, Plan
    from edgelm.quant.model_file import ModelFile
    from edgelm.quant.quantize import Quantizer, Say
    from edgelm.quant.row_threads import RowThreads
    from edgelm.quant.tensor_formats import FormatRules

    Windows = NDArray[np.int32]

KEEP = "keep"


@dataclass(frozen=True, eq=False)
class QuantizeJob:
    """What is to be made of a model.

    Attributes:
        source, target: the model, and the file to be.
        rules: formats by name; None keeps every matrix as it is.
        budget: plan formats within it, but for those that the rules name.
        plan: the file of a plan to follow.
        method: how matrices are quantized.
        scales_channels: first scale the channels between layers.
        texts: the files that the result depends on beside the source: "calibration" or "imatrix".
        calibration_tokens: wanted of the calibration text.
        known: statistics of the inputs, of the importance matrix.
        allow_requantize: quantize again what the source has in few bits already.
        max_memory: bytes of resident memory.
        n_threads: that compute.
        restart: discard what an interrupted run has left.
        say: told of progress.
    """

    source: Path
    target: Path
    rules: FormatRules | None
    budget: Budget | None
    plan: Path | None
    method: Method
    scales_channels: bool
    texts: Mapping[str, Path]
    calibration_tokens: int
    known: Calibration
    allow_requantize: bool
    max_memory: int
    n_threads: int
    restart: bool
    say: Say

    def run(self) -> QuantizeReport:
        """Do the work, or what is left of it; errors as of `quantize`."""
        from edgelm.quant.open_model import open_model
        from edgelm.quant.row_threads import RowThreads

        started = time.perf_counter()
        notes: list[str] = []
        with closing(open_model(self.source)) as file, RowThreads(self.n_threads) as threads:
            _check_runs(file)
            windows = None
            if "calibration" in self.texts:
                windows = calibration_windows(file.metadata, self.texts["calibration"], self.calibration_tokens, notes)
            plan = self._plan(file, windows, threads)
            goals = self._goals(file, plan, windows, notes)
            tensors = self._quantize(file, goals, windows, threads, notes)
        n_bits = sum(row.bits * math.prod(row.shape) for row in tensors)
        return QuantizeReport(
            target=self.target,
            n_bytes=self.target.stat().st_size,
            bits_per_weight=n_bits / sum(math.prod(row.shape) for row in tensors),
            tensors=tensors,
            method=KEEP if self.rules is None else self.method.name,
            scaled_channels=self.scales_channels,
            n_tokens=0 if windows is None else int(windows.size),
            seconds=time.perf_counter() - started,
            peak_bytes=peak_bytes(),
            notes=tuple(notes),
            plan=plan,
        )

    def _plan(self, file: ModelFile, windows: Windows | None, threads: RowThreads) -> Plan | None:
        """The one to follow, or a new one, which is written beside the target."""
        from edgelm.quant.fingerprint import make_fingerprint
        from edgelm.quant.goals import set_goals
        from edgelm.quant.memory_limit import MemoryLimit
        from edgelm.quant.plan_file import read_plan, write_plan
        from edgelm.quant.quantize import bytes_beside_matrices
        from edgelm.runtime.plan_formats import Planner, damages_path

        if self.plan is not None:
            return read_plan(self.plan, {name: tensor.shape for name, tensor in file.tensors.items()})
        if self.budget is None or self.rules is None or windows is None:
            return None
        fingerprint = make_fingerprint(self.source, {"tokens": int(windows.size)}, self.texts)
        memory = MemoryLimit(self.max_memory)
        planner = Planner(file, windows, damages_path(self.target), fingerprint, threads, self.say, memory, self.restart)
        kept = set_goals(file, None, {}, self.allow_requantize, _widened(file))
        plan = planner.plan(self.budget, self.rules, bytes_beside_matrices(file, kept, self._facts(windows, fingerprint["texts"])))
        write_plan(self.target.with_name(f"{self.target.name}.plan.json"), plan)
        return plan

    def _goals(self, file: ModelFile, plan: Plan | None, windows: Windows | None, notes: list[str]) -> dict[str, Goal]:
        """What each tensor becomes, the source and the importance matrix being fit for it."""
        from edgelm.quant.goals import check_calibration, check_finite, set_goals

        widened = _widened(file)
        goals = set_goals(file, self.rules, plan.formats if plan else {}, self.allow_requantize, widened)
        reads_all_first = self.scales_channels and windows is not None  # what is quantized is checked when its turn comes
        check_finite(file, (name for name, goal in goals.items() if reads_all_first or not goal.is_quantized))
        notes += together((goal.resolved.reason, name) for name, goal in goals.items() if goal.resolved.is_stand_in)
        notes += together((why, name) for name, why in widened.items() if goals[name].is_kept)
        if "imatrix" in self.texts:
            notes += together(("the importance matrix has nothing on it", name) for name in check_calibration(goals, self.known))
        return goals

    def _quantize(
        self, file: ModelFile, goals: Mapping[str, Goal], windows: Windows | None, threads: RowThreads, notes: list[str]
    ) -> tuple[TensorReport, ...]:
        """Quantize what an earlier run has not, and write the file."""
        from edgelm.quant.fingerprint import make_fingerprint
        from edgelm.quant.memory_limit import MemoryLimit
        from edgelm.quant.quantize import Quantizer, write_quantized
        from edgelm.quant.scaled_file import ScaledFile
        from edgelm.quant.work_folder import open_or_create
        from edgelm.runtime.channel_scaling import choose_scalings, scaled_columns

        settings = {
            "formats": {name: goal.format.name for name, goal in goals.items()},
            "method": vars(self.method),
            "calibration_tokens": 0 if windows is None else self.calibration_tokens,
            "scale_channels": self.scales_channels,
        }
        fingerprint = make_fingerprint(self.source, settings, self.texts)
        with open_or_create(self.target, fingerprint, self.restart) as work:
            memory = MemoryLimit(self.max_memory, ", or choose --method search, which takes less" if self.method.name == "gptq" else "")
            measured = self.known if windows is None else windows
            scalings: tuple[ChannelScaling, ...] = ()
            if self.scales_channels:
                scalings = choose_scalings(file, goals, self.method, measured, work, threads, self.say, memory)
            scaled = ScaledFile(file, scalings)
            quantizer = Quantizer(scaled, goals, self.method, work, threads, self.say, memory, scaled_columns(scalings))
            if windows is None:
                quantizer.one_by_one(self.known)
            else:
                self._run_blocks(quantizer, windows)
            self.say("writing the file", 1, 1)
            write_quantized(self.target, scaled, goals, work, self._facts(windows, fingerprint["texts"]))
            tensors, finished = tensor_reports(goals, work), work.finished
            notes += together((str(each.facts["note"]), name) for name, each in finished.items() if "note" in each.facts)
            work.remove()
        return tensors

    def _run_blocks(self, quantizer: Quantizer, windows: Windows) -> None:
        from edgelm.backends.block_steps import BlockSteps
        from edgelm.quant.scratch import Scratch

        model = BlockSteps(quantizer.file, windows.shape[1], quantizer.threads)
        with Scratch(self.target.resolve().parent) as scratch:
            quantizer.block_by_block(model, windows, batch_size(model.config, windows), scratch, self._embedding_inputs(quantizer))

    def _embedding_inputs(self, quantizer: Quantizer) -> Calibration:
        """Those of an embedding that is the output layer, too, as it has them there; 8 bits lose too little to gain by them."""
        from edgelm.quant.scaling_record import stored_output_inputs
        from edgelm.quant.tensor_formats import EMBEDDING, OUTPUT, bits_per_weight

        inputs = stored_output_inputs(quantizer.work)
        if inputs is None or OUTPUT in quantizer.goals or bits_per_weight(quantizer.goals[EMBEDDING].format) >= 8:
            return self.known
        return {EMBEDDING: inputs, **self.known}

    def _facts(self, windows: Windows | None, hashes: Mapping[str, str]) -> dict[str, str | int | float]:
        """Metadata of how the file was made."""
        facts: dict[str, str | int | float] = {
            "edgelm.quantize.version": __version__,
            "edgelm.quantize.method": KEEP if self.rules is None else self.method.name,
        }
        if self.rules is not None and self.method.name == "gptq":
            facts |= {"edgelm.quantize.sweeps": self.method.n_sweeps, "edgelm.quantize.damping": self.method.damping}
        if self.scales_channels:
            facts["edgelm.quantize.scaled_channels"] = True
        if windows is not None:
            facts["edgelm.quantize.calibration.tokens"] = int(windows.size)
        return facts | {f"edgelm.quantize.{name}.sha256": sha256 for name, sha256 in hashes.items()}


def _check_runs(file: ModelFile) -> None:
    """What would fail in the end fails now."""
    from edgelm.backends.config import read_config
    from edgelm.backends.weights import read_tensors
    from edgelm.quant.gguf_metadata import gguf_metadata

    read_tensors(file, read_config(file.metadata), with_layers=False)
    gguf_metadata(file.metadata)


def _widened(file: ModelFile) -> Mapping[str, str]:
    """Tensors that are read in a larger format than the source stores them in, and why."""
    widened: Mapping[str, str] = getattr(file, "notes", {})
    return widened

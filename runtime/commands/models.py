"""`edgelm pull` and `edgelm models`: the models known by name, and those that are here."""

from __future__ import annotations

from typing import Annotated

import typer

from edgelm.runtime.catalogue import CATALOGUE, HUB_PREFIX
from edgelm.runtime.settings import read_settings


def pull(
    name: Annotated[str, typer.Argument(help="A name that `edgelm models` lists, or hf:owner/repo/file.")],
) -> None:
    """Fetch a model: resumed if interrupted, verified, and stored only when whole."""
    from edgelm.runtime.commands.loading import pull_visibly

    print(pull_visibly(name))


def models() -> None:
    """List the models known by name, and those already fetched."""
    from edgelm.runtime.commands.tables import print_table

    folder = read_settings().models
    rows = []
    for model in CATALOGUE.values():
        here = (folder / model.file).is_file()
        rows.append((model.name, _megabytes(model.n_bytes or 0), "yes" if here else "no", model.summary, model.licence))
    hub = folder / "hf"
    for file in sorted(path for path in hub.rglob("*") if path.is_file()) if hub.is_dir() else []:
        name = HUB_PREFIX + file.relative_to(hub).as_posix()
        rows.append((name, _megabytes(file.stat().st_size), "yes", "", "see the repository"))
    print_table(("NAME", "SIZE", "HERE", "WHAT", "LICENCE"), rows)
    print(f"\nModels are stored in {folder}. `edgelm pull NAME` fetches one; hf:owner/repo/file names any GGUF file on the hub.")


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.0f} MB"

"""Every test of this folder runs once for every backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
from conformance.cases import CASES, Case, named, tiny_model

from edgelm.backends.base import Backend
from edgelm.backends.reference import ReferenceModel
from edgelm.quant.gguf_file import GGUFFile

_numbers = count(1000)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backend", action="append", default=[], help="put this registered backend to the tests, instead of edgelm's own")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        wanted = metafunc.config.getoption("--backend", default=[])
        cases = {name: named(name) for name in wanted} or dict(CASES)
        if "reference" in metafunc.fixturenames:
            cases = {name: case for name, case in cases.items() if case.reference_error is not None}
        metafunc.parametrize("case", cases.values(), ids=cases.keys(), scope="session")


@pytest.fixture(scope="session")
def model(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, made ready for the backend."""
    reason = case.reason()
    if reason is not None:
        pytest.skip(reason)
    return tiny_model(tmp_path_factory.mktemp("model"), case)


@pytest.fixture(scope="session")
def shared_backend(case: Case, model: Path) -> Iterator[Backend]:
    backend = case.open(model)
    yield backend
    backend.close()


@pytest.fixture
def new(shared_backend: Backend) -> Iterator[Callable[[], int]]:
    """Gives sequences that nobody used before, and frees them after the test."""
    given = []

    def number() -> int:
        given.append(next(_numbers))
        return given[-1]

    yield number
    for sequence in given:
        shared_backend.free(sequence)


@pytest.fixture
def backend(shared_backend: Backend) -> Backend:
    """The backend under test, open; tests take sequences from `new` and must not close it."""
    return shared_backend


@pytest.fixture
def reference(model: Path) -> Iterator[ReferenceModel]:
    """The same model in numpy float32; only for cases that have a reference."""
    source = model if model.is_file() else next(model.parent.glob("*.gguf"))
    with GGUFFile(source) as file:
        yield ReferenceModel(file)

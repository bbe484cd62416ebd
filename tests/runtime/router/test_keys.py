"""Keys: read where they are kept each time, told to nobody, and a missing one is no harm."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import keyring
import pytest
from cloud_server import CloudServer
from keyring.backend import KeyringBackend
from keyring.errors import KeyringLocked
from routed import LOCAL, Routed

from edgelm.errors import CloudError, MissingPackageError
from edgelm.runtime.router.keys import key_of

SECRET = "sk-0123456789"


class MemoryKeyring(KeyringBackend):
    """A system's keyring; while it is locked it gives nothing."""

    priority = 1

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[tuple[str, str], str] = {}
        self.is_locked = False

    def get_password(self, service: str, username: str) -> str | None:
        if self.is_locked:
            raise KeyringLocked(f"cannot open {SECRET}")
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.kept[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        del self.kept[service, username]


@pytest.fixture
def system() -> Iterator[MemoryKeyring]:
    before, own = keyring.get_keyring(), MemoryKeyring()
    keyring.set_keyring(own)
    yield own
    keyring.set_keyring(before)


def fault_of(key: Callable[[], str | None]) -> str:
    with pytest.raises(CloudError) as caught:
        key()
    assert (caught.value.kind, caught.value.may_be_billed) == ("no key", False)
    return str(caught.value)


def test_without_a_place_no_key_is_sent() -> None:
    assert key_of(None, None)() is None


def test_a_key_of_the_environment_is_read_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    key = key_of("CLOUD_KEY", None)
    assert "the environment variable CLOUD_KEY has no API key" in fault_of(key)
    monkeypatch.setenv("CLOUD_KEY", f" {SECRET}\n")
    assert key() == SECRET
    monkeypatch.setenv("CLOUD_KEY", "another")
    assert key() == "another"
    monkeypatch.setenv("CLOUD_KEY", " \n")
    assert "has no API key" in fault_of(key)


def test_a_key_of_the_keyring(system: MemoryKeyring) -> None:
    key = key_of(None, "example")
    assert "the keyring's entry 'example' for 'edgelm' has no API key" in fault_of(key)
    keyring.set_password("example", "somebody else", SECRET)
    assert "has no API key" in fault_of(key)
    keyring.set_password("example", "edgelm", SECRET)
    assert key() == SECRET
    system.is_locked = True
    assert fault_of(key) == "the system's keyring gives no key (KeyringLocked)"


@pytest.mark.parametrize("odd", [f"{SECRET}\n{SECRET}", f"{SECRET}é", f"{SECRET}\x00"])
def test_a_key_that_no_header_can_hold_is_not_told(odd: str, system: MemoryKeyring) -> None:
    system.set_password("example", "edgelm", odd)
    fault = fault_of(key_of(None, "example"))
    assert "copy the key again" in fault
    assert "'example'" in fault
    assert SECRET not in fault


def test_without_the_package_it_is_said_at_once_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)
    assert key_of("CLOUD_KEY", None)
    with pytest.raises(MissingPackageError, match=r"edgelm\[route\]"):
        key_of(None, "example")


def test_the_key_is_sent_and_kept_nowhere(tmp_path: Path, system: MemoryKeyring) -> None:
    system.set_password("example", "edgelm", SECRET)
    with CloudServer() as cloud:
        routed = Routed(tmp_path, cloud.url, key=key_of(None, "example"))
        assert routed.ask().text == "from the cloud"
    assert f"Authorization: Bearer {SECRET}\r\n".encode() in cloud.wire
    assert all(SECRET.encode() not in file.read_bytes() for file in tmp_path.iterdir())
    assert SECRET not in repr(routed.cloud.endpoint)


@pytest.mark.parametrize("place", [("CLOUD_KEY", None), (None, "example")])
def test_without_a_key_this_device_answers(place: tuple[str | None, str | None], tmp_path: Path, system: MemoryKeyring) -> None:
    with CloudServer() as cloud:
        routed = Routed(tmp_path, cloud.url, key=key_of(*place))
        heard = routed.ask()
        assert cloud.n_connections == 0
    assert (heard.text, heard.told.route, heard.told.reason) == (LOCAL, "local", "cloud failed")
    assert (place[0] or "'example'") in (heard.told.fault or "")
    assert routed.budget.spent().day.settled[1:] == (0, 0)
    assert not system.kept

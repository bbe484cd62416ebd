"""The budget: exact, never overspent whoever races and whatever is killed, and never silently begun anew."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule, run_state_machine_as_test

from edgelm.errors import BudgetExceededError, InvalidRequestError, RecordError
from edgelm.runtime.router.amounts import BudgetLimits, Price
from edgelm.runtime.router.budget import Budget, PeriodSpending, Reservation

PRICE = Price(Decimal("0.15"), Decimal("0.60"))
NOON = datetime(2025, 1, 31, 12, tzinfo=UTC).timestamp()
DAY = 86400


@dataclass
class Clock:
    now: float = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "budget.sqlite"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(path: Path, clock: Clock) -> Callable[..., Budget]:
    def open_budget(price: Price = PRICE, **limits: int | Decimal) -> Budget:
        return Budget(path, BudgetLimits(**limits), price, clock)  # type: ignore[arg-type]

    return open_budget


def counted(period: PeriodSpending) -> tuple[int, int, int]:
    """Requests, tokens and millionths, settled and reserved together."""
    requests, tokens, millionths = (sum(pair) for pair in zip(period.settled, period.reserved, strict=True))
    return requests, tokens, millionths


def test_actual_figures_take_the_place_of_the_worst_case(make: Callable[..., Budget]) -> None:
    budget = make(requests_per_day=3, tokens_per_day=5000, money_per_month=1)
    attempt = budget.reserve(1000, 2000)
    day = budget.spent().day
    assert day.reserved == (1, 3000, 1350)
    assert day.reserved.money == Decimal("0.00135")
    assert day.settled == (0, 0, 0)
    assert (day.remaining_requests, day.remaining_tokens, day.remaining_money) == (2, 2000, None)
    budget.settle(attempt, 1000, 10)
    spent = budget.spent()
    assert spent.day.settled == spent.month.settled == (1, 1010, 156)
    assert spent.day.reserved == (0, 0, 0)
    assert spent.month.remaining_money == Decimal("0.999844")


def test_settling_again_changes_nothing_and_other_figures_are_refused(make: Callable[..., Budget]) -> None:
    budget = make()
    attempt = budget.reserve(10, 10)
    for _ in range(2):
        budget.settle(attempt, 7, 3)
    with pytest.raises(InvalidRequestError, match="settled with other figures"):
        budget.settle(attempt, 7, 4)
    assert budget.spent().day.settled[:2] == (1, 10)


def test_more_than_was_reserved_is_told_truthfully(make: Callable[..., Budget]) -> None:
    budget = make(tokens_per_day=100)
    budget.settle(budget.reserve(50, 50), 50, 1000)
    assert budget.spent().day.settled.tokens == 1050
    assert budget.spent().day.remaining_tokens == 0
    with pytest.raises(BudgetExceededError):
        budget.reserve(0, 1)


def test_released_is_not_counted_unless_it_was_sent_after_all(make: Callable[..., Budget]) -> None:
    budget = make(requests_per_day=1)
    attempt = budget.reserve(10, 10)
    for _ in range(2):
        budget.release(attempt)
    assert counted(budget.spent().day) == (0, 0, 0)
    second = budget.reserve(10, 10)
    budget.settle(second, 1, 1)
    with pytest.raises(InvalidRequestError, match="stays counted"):
        budget.release(second)
    budget.settle(attempt, 5, 5)
    assert budget.spent().day.settled[:2] == (2, 12)


def test_an_attempt_of_another_budget(make: Callable[..., Budget], tmp_path: Path) -> None:
    attempt = Budget(tmp_path / "other.sqlite", BudgetLimits(), PRICE).reserve(1, 1)
    for call in (lambda: make().settle(attempt, 1, 1), lambda: make().release(attempt)):
        with pytest.raises(InvalidRequestError, match=f"knows no attempt {attempt.id}"):
            call()


def test_money_is_exact_and_rounded_up(make: Callable[..., Budget]) -> None:
    budget = make(Price(Decimal("0.1"), Decimal("0.000001")), money_per_day=Decimal("0.000002"))
    with localcontext(prec=2):
        budget.settle(budget.reserve(1, 1), 10, 0)  # 0.1000001 millionths are reserved as 1; ten tokens are one exactly
        budget.reserve(1, 0)
        assert budget.spent().day.settled.money == Decimal("0.000001")
        assert budget.spent().day.remaining_money == 0
        with pytest.raises(
            BudgetExceededError, match=r"money_per_day is 0\.000002: 0\.000001 spent, 0\.000001 reserved .* may take 0\.000001"
        ):
            budget.reserve(0, 1)


def test_a_bound_of_money_finer_than_a_millionth_is_rounded_down(make: Callable[..., Budget]) -> None:
    budget = make(Price(1, 1), money_per_day=Decimal("0.0000019"))
    budget.reserve(1, 0)
    with pytest.raises(BudgetExceededError):
        budget.reserve(1, 0)


def test_counts_that_make_no_sense(make: Callable[..., Budget]) -> None:
    budget = make()
    for n in (-1, 1.5, True, 10**10):
        with pytest.raises(InvalidRequestError, match="n_output is"):
            budget.reserve(0, n)  # type: ignore[arg-type]
    assert counted(budget.spent().day) == (0, 0, 0)


def test_nothing_is_allowed_by_a_limit_of_nothing(make: Callable[..., Budget]) -> None:
    with pytest.raises(BudgetExceededError, match=r"requests_per_day is 0: 0 spent.* alone is too large"):
        make(requests_per_day=0).reserve(0, 0)


@pytest.mark.parametrize(
    ("limits", "text", "resets"),
    [
        ({"requests_per_day": 2}, r"requests_per_day is 2: 1 spent, 1 reserved .* may take 1; .* 2025-02-01 00:00 UTC; wait", (2025, 2, 1)),
        ({"tokens_per_day": 2110}, "tokens_per_day is 2,110: 110 spent, 2,000 reserved .* may take 1,000; .* 2025-02-01", (2025, 2, 1)),
        ({"tokens_per_month": 2500, "requests_per_day": 2}, "tokens_per_month is 2,500: .* 2025-02-01 00:00 UTC; wait", (2025, 2, 1)),
        (
            {"tokens_per_day": 2500, "money_per_month": Decimal("0.0009")},
            r"money_per_month is 0\.000900: 0\.000062 spent, 0\.0003",
            (2025, 2, 1),
        ),
    ],
)
def test_the_error_says_which_limit_what_is_spent_and_when_it_resets(
    make: Callable[..., Budget], limits: dict[str, Any], text: str, resets: tuple[int, int, int]
) -> None:
    budget = make(**limits)
    budget.settle(budget.reserve(110, 0), 10, 100)
    budget.reserve(2000, 0)
    before = budget.spent()
    with pytest.raises(BudgetExceededError, match=text) as raised:
        budget.reserve(0, 1000)
    assert raised.value.resets_at == datetime(*resets, tzinfo=UTC)
    assert budget.spent() == before


def test_a_day_and_a_month_begin_anew_at_midnight_utc(make: Callable[..., Budget], clock: Clock) -> None:
    budget = make(requests_per_day=1, requests_per_month=3)
    clock.now = datetime(2024, 2, 28, 23, 59, 59, tzinfo=UTC).timestamp() + 0.9
    lost = budget.reserve(1, 1)
    with pytest.raises(BudgetExceededError, match="2024-02-29 00:00 UTC"):
        budget.reserve(1, 1)
    clock.now += 0.1
    budget.reserve(1, 1)
    assert budget.spent().day.resets_at == datetime(2024, 3, 1, tzinfo=UTC)
    clock.now += DAY
    budget.reserve(1, 1)
    spent = budget.spent()
    assert (spent.day.reserved.requests, spent.month.reserved.requests) == (1, 1)
    assert spent.month.resets_at == datetime(2024, 4, 1, tzinfo=UTC)
    budget.settle(lost, 100, 100)  # counts in February, where it was sent
    assert budget.spent() == spent


def test_the_year_turns(make: Callable[..., Budget], clock: Clock) -> None:
    clock.now = datetime(2025, 12, 31, 12, tzinfo=UTC).timestamp()
    assert make().spent().month.resets_at == datetime(2026, 1, 1, tzinfo=UTC)


def test_a_clock_put_back_opens_no_budget_again(make: Callable[..., Budget], clock: Clock) -> None:
    budget = make(requests_per_day=1, requests_per_month=5)
    budget.reserve(1, 1)
    clock.now += DAY  # February
    budget.release(budget.reserve(1, 1))  # even what is not counted tells the time
    for back in (DAY, 40 * DAY, 4000 * DAY):
        clock.now = NOON + DAY - back
        again = make(requests_per_day=1, requests_per_month=5)
        assert again.spent().day.resets_at == datetime(2025, 2, 2, tzinfo=UTC)
        if back == DAY:
            again.reserve(1, 1)  # February's, not January's
        with pytest.raises(BudgetExceededError, match=r"resets at 2025-02-02.*the clock says .*but has been at 2025-02-01 or later"):
            again.reserve(1, 1)
    clock.now = NOON + 2 * DAY
    budget.reserve(1, 1)


def test_the_file_is_its_owners_only(make: Callable[..., Budget], path: Path) -> None:
    before = os.umask(0)
    try:
        make().reserve(1, 1)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.chmod(0o644)
    make()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("content", [b"", b"this is no database. " * 300, b"SQLite format 3\0" + b"\xff" * 8192])
def test_a_file_that_is_no_budget_is_an_error_and_left_alone(make: Callable[..., Budget], path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(RecordError, match=r"no budget of edgelm.*begin a new"):
        make()
    assert path.read_bytes() == content


def test_a_budget_cut_short_or_damaged_is_an_error(make: Callable[..., Budget], path: Path) -> None:
    budget = make()
    for _ in range(40):
        budget.reserve(1, 1)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) - 4096], whole[:4096] + b"\xa5" * (len(whole) - 4096)):
        path.write_bytes(damaged)
        with pytest.raises(RecordError, match="damaged"):
            make()
        assert path.read_bytes() == damaged


def test_other_databases_and_later_versions(make: Callable[..., Budget], path: Path) -> None:
    budget = make()
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 9")
    for use in (make, lambda: budget.reserve(1, 1)):
        with pytest.raises(RecordError, match=r"version 9.*update edgelm"):
            use()
    path.unlink()
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE photos (id)")
        database.commit()
    with pytest.raises(RecordError, match="no budget of edgelm"):
        make()


def test_a_file_that_vanishes_is_no_fresh_budget(make: Callable[..., Budget], path: Path) -> None:
    budget = make()
    path.unlink()
    with pytest.raises(RecordError, match="cannot be used"):
        budget.reserve(1, 1)
    assert not path.exists()
    path.with_name(f"{path.name}-journal").touch()
    with pytest.raises(RecordError, match="was deleted"):
        make()


def test_links_and_folders_are_no_budget(make: Callable[..., Budget], path: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RecordError, match="no regular file"):
        make()
    assert not (tmp_path / "elsewhere").exists()
    path.unlink()
    path.mkdir()
    with pytest.raises(RecordError, match="no regular file"):
        make()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RecordError, match="cannot be used"):
        Budget(tmp_path / "file" / "budget.sqlite", BudgetLimits(), PRICE)


def test_a_read_only_folder() -> None:
    """In a process of its own, which gives up root's right to write everywhere."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        file = folder / "budget.sqlite"
        Budget(file, BudgetLimits(), PRICE)
        code = (
            "import fcntl, os, sys; from pathlib import Path\n"
            "from edgelm.errors import RecordError\n"
            "from edgelm.runtime.router.amounts import BudgetLimits, Price\n"
            "from edgelm.runtime.router.budget import Budget\n"
            "folder = Path(sys.argv[1])\n"
            "def refused(use):\n"
            "    try: use()\n"
            "    except RecordError as error: print(error)\n"
            "budget = Budget(folder / 'budget.sqlite', BudgetLimits(), Price(1, 1))\n"
            "folder.chmod(0o555)\n"
            "if os.geteuid() == 0:\n"
            "    os.chown(folder / 'budget.sqlite', 65534, 65534)\n"
            "    os.seteuid(65534)\n"
            "refused(lambda: budget.reserve(1, 1))\n"
            "refused(lambda: Budget(folder / 'new.sqlite', BudgetLimits(), Price(1, 1)))\n"
        )
        done = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True, timeout=60, check=True)
        folder.chmod(0o755)
        first, second = done.stdout.splitlines()
        assert "budget.sqlite cannot be used" in first
        assert "new.sqlite cannot be used" in second
        assert counted(Budget(file, BudgetLimits(), PRICE).spent().day) == (0, 0, 0)


def test_of_many_threads_exactly_as_many_as_the_budget_allows(make: Callable[..., Budget]) -> None:
    budget, start = make(requests_per_day=7), threading.Barrier(50)

    def race(_: int) -> bool:
        start.wait()
        try:
            budget.reserve(1, 1)
        except BudgetExceededError:
            return False
        return True

    with ThreadPoolExecutor(50) as pool:
        assert sum(pool.map(race, range(50))) == 7
    assert budget.spent().day.reserved.requests == 7


def test_threads_that_open_it_together_make_one_budget(make: Callable[..., Budget]) -> None:
    start = threading.Barrier(10)

    def race(_: int) -> Reservation:
        start.wait()
        return make().reserve(1, 1)

    with ThreadPoolExecutor(10) as pool:
        assert len({attempt.id for attempt in pool.map(race, range(10))}) == 10
    assert make().spent().day.reserved.requests == 10


def test_a_process_that_forked_goes_on(make: Callable[..., Budget]) -> None:
    budget = make(requests_per_day=2)
    budget.reserve(1, 1)
    code = "import os, sys; from pathlib import Path; from edgelm.runtime.router.budget import Budget\n"
    code += "from edgelm.runtime.router.amounts import BudgetLimits, Price\n"
    code += f"budget = Budget(Path({str(budget._path)!r}), BudgetLimits(requests_per_day=2), Price(1, 1), lambda: {NOON})\n"
    code += "if child := os.fork(): sys.exit(os.waitpid(child, 0)[1])\n"
    code += "budget.reserve(1, 1); os._exit(0)"
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)
    with pytest.raises(BudgetExceededError):
        budget.reserve(1, 1)


def _spend(path: Path, seed: int, share_killed: float) -> None:
    """Reserve and settle until nothing is left, or until it dies in between; each line on stdout is a call that has returned."""
    chance = random.Random(seed)
    budget = Budget(path, BudgetLimits(tokens_per_month=2500), Price(1, 1), lambda: NOON)
    with suppress(BudgetExceededError):
        while True:
            attempt = budget.reserve(50, 50)
            os.write(1, f"reserved {attempt.id}\n".encode())
            if chance.random() < share_killed:
                os.kill(os.getpid(), signal.SIGKILL)
            actual = chance.randint(1, 100)
            budget.settle(attempt, actual, 0)
            os.write(1, f"settled {attempt.id} {actual}\n".encode())


def test_processes_that_are_killed_never_overspend_and_lose_nothing(make: Callable[..., Budget], path: Path) -> None:
    make()
    chance = random.Random(5)
    code = f"import sys, runpy; from pathlib import Path; spend = runpy.run_path({__file__!r})['_spend']"
    code += "; spend(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))"
    told = []
    for round_, share_killed in enumerate((0.4, 0.0, 0.0)):  # die between reserve and settle; anywhere; spend what is left
        racers = [
            subprocess.Popen([sys.executable, "-c", code, str(path), f"{round_}{n}", str(share_killed)], stdout=subprocess.PIPE, text=True)
            for n in range(3)
        ]
        for racer in racers if round_ == 1 else ():
            assert racer.stdout is not None
            told += [racer.stdout.readline() for _ in range(chance.randint(1, 4))]
            racer.kill()
        told += [line for racer in racers for line in racer.communicate(timeout=60)[0].splitlines(keepends=True)]
        assert {racer.returncode for racer in racers} <= ({-signal.SIGKILL}, {-signal.SIGKILL, 0}, {0})[round_]
        month = make(tokens_per_month=2500).spent().month
        assert counted(month)[1] <= 2500
    assert counted(month)[1] > 2400
    assert month.reserved.requests >= 3
    with closing(sqlite3.connect(path)) as database:
        rows = {row[0]: row[1:] for row in database.execute("SELECT id, state, tokens FROM attempts")}
    for what, attempt, *actual in (line.split() for line in told if line.endswith("\n")):
        assert attempt in rows
        assert what == "reserved" or rows[attempt] == ("settled", int(actual[0]))


class Interleaving(RuleBasedStateMachine):
    """Any order of calls, on two objects of one file, with a clock that goes anywhere; beside it, what should be counted."""

    attempts = Bundle("attempts")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = Clock()
        limits = BudgetLimits(tokens_per_day=100, requests_per_day=6, tokens_per_month=250, money_per_month=Decimal("0.0004"))
        self.limits = limits
        self.budgets = [Budget(Path(self.folder.name) / "budget.sqlite", limits, Price(1, 2), self.clock) for _ in range(2)]
        self.latest = 0
        self.model: dict[str, tuple[str, str, int, int]] = {}  # by id: day, state, tokens, millionths

    def teardown(self) -> None:
        self.folder.cleanup()

    def today(self) -> str:
        return datetime.fromtimestamp(max(self.latest, int(self.clock())), UTC).strftime("%Y-%m-%d")

    def of(self, period: str) -> tuple[int, int, int]:
        rows = [row for row in self.model.values() if row[0].startswith(period) and row[1] != "released"]
        return len(rows), sum(row[2] for row in rows), sum(row[3] for row in rows)

    @rule(target=attempts, which=st.integers(0, 1), n_input=st.integers(0, 40), n_output=st.integers(0, 40))
    def reserve(self, which: int, n_input: int, n_output: int) -> Any:
        (day_n, day_tokens, _), (_, month_tokens, money) = self.of(self.today()), self.of(self.today()[:7])
        tokens, cost = n_input + n_output, n_input + 2 * n_output
        fits = day_n < 6 and day_tokens + tokens <= 100 and month_tokens + tokens <= 250 and money + cost <= 400
        try:
            attempt = self.budgets[which].reserve(n_input, n_output)
        except BudgetExceededError:
            assert not fits
            return None
        assert fits
        self.model[attempt.id] = (self.today(), "reserved", tokens, cost)
        self.latest = max(self.latest, int(self.clock()))
        return attempt, n_input, n_output

    @rule(attempt=consumes(attempts), which=st.integers(0, 1), share=st.integers(0, 4))
    def settle(self, attempt: Any, which: int, share: int) -> None:
        if attempt is not None:
            reservation, n_input, n_output = attempt[0], attempt[1], attempt[2] * share // 4
            self.budgets[which].settle(reservation, n_input, n_output)
            day = self.model[reservation.id][0]
            self.model[reservation.id] = (day, "settled", n_input + n_output, n_input + 2 * n_output)

    @rule(attempt=consumes(attempts), which=st.integers(0, 1))
    def release(self, attempt: Any, which: int) -> None:
        if attempt is not None:
            self.budgets[which].release(attempt[0])
            self.model[attempt[0].id] = (self.model[attempt[0].id][0], "released", 0, 0)

    @rule(hours=st.integers(-60, 60))
    def pass_time(self, hours: int) -> None:
        self.clock.now += 3600 * hours

    @invariant()
    def is_not_overspent(self) -> None:
        spent = self.budgets[0].spent()
        assert counted(spent.day) == self.of(self.today())
        assert counted(spent.month) == self.of(self.today()[:7])
        for _, tokens, _ in map(self.of, {row[0] for row in self.model.values()}):
            assert tokens <= 100


def test_no_interleaving_overspends() -> None:
    run_state_machine_as_test(
        Interleaving,
        settings=settings(max_examples=15, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)),
    )

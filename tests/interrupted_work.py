"""Work in a work folder that is killed, for tests/quant/test_work_folder.py: `python interrupted_work.py TASK TARGET`."""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from edgelm.errors import ModelFileError
from edgelm.quant.blocks import Q4_0
from edgelm.quant.work_folder import WorkFolder, open_or_create, work_path

FINGERPRINT = {"settings": {"format": "q4_0"}}
SHAPE = (40, 320)
N_STEPS = 2


def tensor(step: int) -> np.ndarray:
    return np.random.default_rng(step).integers(0, 256, Q4_0.nbytes(SHAPE), np.uint8)


def hidden(step: int) -> np.ndarray:
    return np.random.default_rng(step).normal(size=(6, 50, 16)).astype(np.float32)


def check_whole(folder: WorkFolder, n_done: int) -> None:
    """All tensors up to the last checkpoint are there, perhaps one more, and the checkpoint is that of the last step."""
    names = [f"t{n}" for n in range(n_done)]
    if list(folder.finished) not in (names, [*names, f"t{n_done}"]):
        raise SystemExit(f"after {n_done} steps there are {list(folder.finished)}")
    state = folder.last_state()
    if any(not np.array_equal(folder.load_tensor(f"t{n}"), tensor(n)) for n in range(len(folder.finished))):
        raise SystemExit("a tensor has other bytes than were saved")
    if state and not np.array_equal(np.concatenate(list(state.arrays["hidden"].chunks(4))), hidden(n_done)):
        raise SystemExit("a checkpoint has other values than were saved")


def work(target: Path) -> None:
    """Resume, check what is there, do the rest, write the target, and clear away."""
    with open_or_create(target, FINGERPRINT) as folder:
        state = folder.last_state()
        n_done = int(state.step) if state else 0
        check_whole(folder, n_done)
        for step in range(n_done, N_STEPS):
            folder.save_tensor(f"t{step}", Q4_0, SHAPE, tensor(step), {"error": 0.1})
            with folder.new_state(str(step + 1)) as new:
                for rows in np.split(hidden(step + 1), 3):
                    new.append("hidden", rows)
                    new.append("positions", np.arange(len(rows)))
            check_whole(folder, step + 1)
        target.write_bytes(b"".join(folder.load_tensor(f"t{n}").tobytes() for n in range(N_STEPS)))
        folder.remove()


def forked(task: Callable[[], None]) -> int:
    """The exit status of a task in a process of its own; minus the signal where one ended it."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            task()
            status = 0
        except SystemExit as error:
            print(error, flush=True)
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(n_operations: int, task: Callable[[], None]) -> None:
    """Run the task, and die at its nth operation on files."""
    left = [n_operations]

    def count(event: str, _: object) -> None:
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir", "mmap.__new__"):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    task()


def without_waiting_for_the_disk() -> None:
    """What a process wrote survives its death even if it is not on the disk yet; so waiting only takes time here."""
    os.fsync = lambda _: None  # type: ignore[assignment]


def require(status: int, *allowed: int) -> None:
    if status not in allowed:
        raise SystemExit(f"a process ended with {status}")


def kill_at_every_operation(target: Path) -> None:
    """Kill at the first operation and resume; at the second and resume; and so on, until there is none to be killed at."""
    without_waiting_for_the_disk()
    n_operations, status = 0, -signal.SIGKILL
    while status != 0:
        target.unlink(missing_ok=True)
        status = forked(partial(killed_at, n_operations, partial(work, target)))
        require(status, 0, -signal.SIGKILL)
        require(forked(partial(work, target)), 0)
        require_done(target)
        n_operations += 1
    print(n_operations)


def kill_at_random_moments(target: Path) -> None:
    """Resume again and again what is killed after a while, and at last let it end."""
    without_waiting_for_the_disk()
    chance = random.Random(0)

    def short_lived(seconds: float) -> None:
        threading.Timer(seconds, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
        work(target)

    for _ in range(30):
        status = forked(partial(short_lived, chance.uniform(0, 0.04)))
        require(status, 0, -signal.SIGKILL)
        if status == 0:
            require_done(target)
            target.unlink()
    require(forked(partial(work, target)), 0)
    require_done(target)


def require_done(target: Path) -> None:
    if target.read_bytes() != b"".join(tensor(n).tobytes() for n in range(N_STEPS)) or work_path(target).exists():
        raise SystemExit("the work was not finished")


def hold(target: Path) -> None:
    """Keep the folder open until killed."""
    with open_or_create(target, FINGERPRINT):
        print("held", flush=True)
        signal.pause()


def fill_disk(target: Path) -> None:
    """Save until there is no room, three ways; prints what one is told, and the files that are left each time."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    with open_or_create(target, FINGERPRINT) as folder:
        folder.save_state("first", {"hidden": hidden(1)})
        folder.save_tensor("small", Q4_0, SHAPE, tensor(0))
        large = np.zeros((1000, 320), np.float32)
        for fail in (
            lambda: folder.save_tensor("large", Q4_0, large.shape, np.zeros(Q4_0.nbytes(large.shape), np.uint8)),
            lambda: folder.save_state("second", {"hidden": hidden(2), "large": np.split(large, 100)}),
            lambda: folder.save_tensor("long", Q4_0, SHAPE, tensor(0), {"words": "x" * 100_000}),
        ):
            try:
                fail()
            except ModelFileError as error:
                print(error)
                print(len(list(folder.path.glob("*.bin"))), len(list(folder.path.glob("*.partial"))))


if __name__ == "__main__":
    tasks = (kill_at_every_operation, kill_at_random_moments, hold, fill_disk)
    {task.__name__: task for task in tasks}[sys.argv[1]](Path(sys.argv[2]))

"""A Dockerfile carried out without a container engine, in plain folders.

The folder `root` stands for the file system of the stage that is being built: /opt means root/opt, in the words of COPY and ENV and in
the commands of RUN, which a real shell runs. A finished stage is put aside under its name, so that what a stage writes into its files
(such as the first lines of scripts) holds in the next one, whose folder is `root` again. The last stage stays there and is the image.

What a plain folder cannot give is not claimed: the base image is this machine's Python with a few programs, processes see the other files
of the machine, and who is not root can neither give files away nor become another user.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from build_context import copy_context
from dockerfile import DockerfileError, Instruction, parse, substitute

PROGRAMS = ("sh", "mkdir")
"""What RUN finds of the system beside python; others, such as package managers, would change this machine."""

_BASE_IMAGE = re.compile(r"python:[\d.]+-slim(-\w+)?")
_BASE_ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
_OF_THE_MACHINE = re.compile(r"PIP_(?!CACHE)\w+|SSL_CERT_\w+|REQUESTS_CA_BUNDLE|(https?|no|all)_proxy", re.IGNORECASE)
_RUN_S = 400


class StepError(Exception):
    """A step of the Dockerfile failed."""


@dataclass
class Config:
    """What an image says of its processes."""

    env: dict[str, str] = field(default_factory=lambda: dict(_BASE_ENV))
    labels: dict[str, str] = field(default_factory=dict)
    volumes: list[str] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)
    folder: str = "/"
    user: str = "0:0"
    entry_point: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health_check: list[str] = field(default_factory=list)
    stop_signal: str = "SIGTERM"


@dataclass(frozen=True)
class Image:
    """A file system and what it says of its processes."""

    root: Path
    config: Config

    def path(self, inside: str) -> Path:
        """The place of an absolute path of the image."""
        return self.root / inside.lstrip("/")

    def start(self, command: Sequence[str] | None = None, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """The entry point with a command, the image's own unless given, as the image's user."""
        return self._popen([*self.config.entry_point, *(self.config.command if command is None else command)], env or {})

    def run(self, command: Sequence[str], env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """A program beside the entry point, as `docker exec` has it and as health checks are run."""
        with self._popen(command, env or {}) as process:
            out, errors = process.communicate(timeout=60)
        return subprocess.CompletedProcess(list(command), process.returncode, out, errors)

    def unchanging(self) -> dict[str, tuple[int, int, int]]:
        """Mode, size and time of all that a read-only file system would hold: not what is in volumes, in secrets and in /tmp."""
        writable = [self.path(inside) for inside in ("/tmp", "/run", *self.config.volumes)]
        seen = {}
        for folder, folders, files in os.walk(self.root):
            folders[:] = [name for name in folders if Path(folder, name) not in writable]
            for name in [".", *files]:
                status = Path(folder, name).lstat()
                seen[os.path.join(folder, name)] = (status.st_mode, status.st_size, status.st_mtime_ns)  # noqa: PTH118
        return seen

    def shut_to_others(self) -> list[str]:
        """Files and folders of the image that a user who owns none of them could not read."""
        needed = {stat.S_IFDIR: 0o005, stat.S_IFREG: 0o004, stat.S_IFLNK: 0}
        seen = self.unchanging()
        return [path for path, (mode, _, _) in seen.items() if mode & needed[stat.S_IFMT(mode)] != needed[stat.S_IFMT(mode)]]

    def mapped(self, text: str) -> str:
        """Shell or PATH text with the absolute paths in it moved to the image's folder."""
        return re.sub(r"""(^|[\s=:"'(])/(?=\w)""", lambda match: f"{match[1]}{self.root}/", text)

    def environment(self, given: Mapping[str, str]) -> dict[str, str]:
        """What a process of the image finds in its environment."""
        home = "/root" if self.config.user.startswith("0") else "/"  # a user who is not in /etc/passwd
        env = {"HOME": home, **self.config.env, **given}
        return {name: str(self.root) if value == "/" else self.mapped(value) for name, value in env.items()} | {
            "TMPDIR": f"{self.root}/tmp"
        }

    def as_user(self) -> list[str]:
        """The words before a command that make it run as the image's user, where this process may become another."""
        if os.geteuid() != 0 or self.config.user.startswith("0"):
            return []
        user, _, group = self.config.user.partition(":")
        words = [shutil.which("setpriv") or "/usr/bin/setpriv", "--reuid", user, "--regid", group, "--clear-groups", "--no-new-privs"]
        if not _open_to_all(Path(sys.executable)):  # the base's Python lies in a private folder: let it be read, but not written to
            words += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
        return words

    def _popen(self, command: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[str]:
        words = [f"{self.root}{word}" if re.match(r"/\w", word) else word for word in command]
        environment = self.environment(env)
        program = shutil.which(words[0], path=environment["PATH"])
        if program is None:
            raise StepError(f"{words[0]} is not in the image's PATH")
        return subprocess.Popen(
            [*self.as_user(), program, *words[1:]],
            cwd=self.path(self.config.folder),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def _open_to_all(path: Path) -> bool:
    places = [path, path.resolve()]
    return all(parent.stat().st_mode & stat.S_IXOTH for place in places for parent in place.parents)


class Replay:
    """Builds the image of one Dockerfile."""

    def __init__(self, dockerfile: Path, context: Path, work: Path, caches: Path) -> None:
        """
        Args:
            context: the folder that COPY copies from.
            work: an empty folder that any user may enter.
            caches: where cache mounts are kept, each under the last name of its target.
        """
        self._instructions = parse(dockerfile.read_text(encoding="utf-8"))
        self._context = work / "context"
        self._stages = work / "stages"
        self._caches = caches
        self._image = Image(work / "root", Config())
        self._args: dict[str, str] = {}
        self._global_args: dict[str, str] = {}
        self._name: str | None = None
        copy_context(context, self._context)
        self._stages.mkdir()

    def build(self) -> Image:
        """
        Raises:
            DockerfileError: an instruction is wrong or not known.
            StepError: a command of RUN failed.
        """
        for raw in self._instructions:
            keeps_variables = raw.name in ("RUN", "CMD", "ENTRYPOINT", "HEALTHCHECK")  # a shell's matter, or nobody's
            known = self._global_args if raw.name == "FROM" else {**self._args, **self._image.config.env}
            step = raw if keeps_variables else substitute(raw, known)
            if self._name is None and step.name not in ("ARG", "FROM"):
                raise step.error("stands before the first FROM")
            self._carry_out(step)
        if self._name is None:
            raise DockerfileError("there is no FROM")
        return self._image

    def _carry_out(self, step: Instruction) -> None:
        config = self._image.config
        match step.name:
            case "FROM":
                self._begin_stage(step)
            case "ARG":
                self._declare(step)
            case "COPY":
                self._copy(step)
            case "RUN":
                self._run(step)
            case "ENV":
                config.env |= step.pairs()
            case "LABEL":
                config.labels |= step.pairs()
            case "WORKDIR":
                config.folder = str(PurePosixPath(config.folder) / step.text)
                _make_folder(self._image.path(config.folder))
            case "USER":
                if not re.fullmatch(r"\d+:\d+", step.text):
                    raise step.error(f"{step.text} is not UID:GID in numbers, which need no entry in /etc/passwd")
                config.user = step.text
            case "VOLUME":
                config.volumes += step.words()
            case "EXPOSE":
                config.ports += [int(word) for word in step.words()]
            case "STOPSIGNAL":
                config.stop_signal = step.text
            case "ENTRYPOINT":
                config.entry_point, config.command = step.exec_form(), []
            case "CMD":
                config.command = step.exec_form()
            case "HEALTHCHECK":
                word, _, command = step.text.partition(" ")
                if word != "CMD":
                    raise step.error(f"{word} is not CMD")
                config.health_check = Instruction(step.name, {}, command, step.line).exec_form()

    def _declare(self, step: Instruction) -> None:
        name, equals, value = step.text.partition("=")
        args = self._global_args if self._name is None else self._args
        if not equals and name not in self._global_args:
            raise step.error(f"{name} has no value")
        args[name] = value if equals else self._global_args[name]

    def _begin_stage(self, step: Instruction) -> None:
        base, *rest = step.words()
        if not _BASE_IMAGE.fullmatch(base):
            raise step.error(f"{base} is no base that is known here, which are python:VERSION-slim...")
        if rest and (len(rest) != 2 or rest[0].upper() != "AS"):
            raise step.error(f"{step.text} is not FROM BASE AS NAME")
        if self._name is not None:
            self._image.root.rename(self._stages / self._name)
        self._name = rest[1] if rest else "last"
        self._image = Image(self._image.root, Config())
        self._args = {}
        root = self._image.root
        for folder in ("", "root", "run", "tmp", "usr", "usr/bin", "usr/local", "usr/local/bin"):
            _make_folder(root / folder)
        (root / "tmp").chmod(0o1777)
        for program in PROGRAMS:
            (root / "usr/bin" / program).symlink_to(shutil.which(program) or f"/bin/{program}")
        python = root / "usr/local/bin/python"  # no link: Python would not find its environment, in which pip is
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
        python.chmod(0o755)

    def _copy(self, step: Instruction) -> None:
        *sources, target = step.words()
        if not sources:
            raise step.error(f"{step.text} has no target")
        origin = self._context
        if "from" in step.flags:
            origin = self._stages / step.flags["from"]
            if not origin.is_dir():
                raise step.error(f"there is no earlier stage {step.flags['from']}")
        place = self._image.path(str(PurePosixPath(self._image.config.folder) / target))
        for source in sources:
            path = origin / source.lstrip("/")
            if path.is_dir():
                shutil.copytree(path, place, symlinks=True, dirs_exist_ok=True)
            elif path.is_file():
                into_folder = target.endswith("/") or len(sources) > 1 or place.is_dir()
                file = place / path.name if into_folder else place
                file.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, file)
            else:
                raise step.error(f"there is no {source} to copy; is it left out by .dockerignore?")
        if "chown" in step.flags and os.geteuid() == 0:
            user, _, group = step.flags["chown"].partition(":")
            for each in [place, *place.rglob("*")]:
                os.chown(each, int(user), int(group or user), follow_symlinks=False)

    def _run(self, step: Instruction) -> None:
        image = self._image
        link = self._mount(step)
        of_the_machine = {name: value for name, value in os.environ.items() if _OF_THE_MACHINE.fullmatch(name)}
        settings = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")  # of pip: where packages come from
        env = image.environment(self._args) | of_the_machine | {"XDG_CONFIG_HOME": settings}
        done = subprocess.run(
            [*image.as_user(), "/bin/sh", "-c", image.mapped(step.text)],
            cwd=image.path(image.config.folder),
            env=env,
            umask=0o022,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_RUN_S,
            check=False,
        )
        if link is not None:
            link.unlink()
        if done.returncode != 0:
            raise StepError(f"{step.error(step.text)}: exit code {done.returncode}\n{done.stdout[-3000:]}")

    def _mount(self, step: Instruction) -> Path | None:
        """The link that stands for a cache mount."""
        if "mount" not in step.flags:
            return None
        options = dict(option.split("=", 1) for option in step.flags["mount"].split(","))
        if options.keys() != {"type", "target"} or options["type"] != "cache":
            raise step.error(f"a mount {step.flags['mount']} is not known here")
        link = self._image.path(options["target"])
        link.parent.mkdir(parents=True, exist_ok=True)
        kept = self._caches / link.name
        kept.mkdir(parents=True, exist_ok=True)
        link.symlink_to(kept, target_is_directory=True)
        return link


def _make_folder(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o755)

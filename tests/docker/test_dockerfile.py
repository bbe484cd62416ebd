"""The replay carries out what an engine would, and refuses what an engine would refuse or what it does not know."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from build_context import ignore_rules, is_ignored
from dockerfile import DockerfileError, parse
from image_replay import Image, Replay, StepError

BASE = "FROM python:3.11-slim"


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "hello.txt").write_text("hello")
    (folder / "code" / "link").symlink_to("../elsewhere")
    (folder / "secret").write_text("secret")
    (folder / ".dockerignore").write_text("secret\n")
    return folder


def build(context: Path, *lines: str) -> Image:
    work = context.parent / "work"
    work.mkdir()
    file = context.parent / "Dockerfile"
    file.write_text("\n".join(lines))
    return Replay(file, context, work, context.parent / "caches").build()


def test_stages_hand_on_what_they_made(context: Path) -> None:
    image = build(
        context,
        "ARG PYTHON=3.11",
        "FROM python:${PYTHON}-slim AS build",
        "WORKDIR /source",
        "COPY . .",
        "ENV GREETING=/source/code PATH=/opt/bin:$PATH",
        "# a comment within a step",
        "RUN mkdir /made \\",
        "    # and another",
        '    && echo "$GREETING $PATH" > /made/words && python -c "print(1 + 1)" > /made/sum',
        BASE,
        "COPY --from=build /made /opt/made",
        "COPY code/hello.txt /opt/",
        'ENTRYPOINT ["python"]',
        'CMD ["-c", "print(5)"]',
    )
    assert image.path("/opt/made/sum").read_text() == "2\n"
    assert image.path("/opt/made/words").read_text().split() == [
        f"{image.root}/source/code",
        image.mapped("/opt/bin:/usr/local/bin:/usr/bin:/bin"),
    ]
    assert image.path("/opt/hello.txt").read_text() == "hello"
    assert not image.path("/source").exists()
    with image.start() as process:
        assert process.communicate()[0] == "5\n"


def test_the_context_keeps_links_and_leaves_out_what_is_ignored(context: Path) -> None:
    image = build(context, BASE, "COPY . /all")
    assert image.path("/all/code/link").readlink() == Path("../elsewhere")
    assert not image.path("/all/secret").exists()


def test_a_cache_mount_is_kept_beside_the_image(context: Path) -> None:
    image = build(context, BASE, "RUN --mount=type=cache,target=/root/.cache/pip echo kept > /root/.cache/pip/file")
    assert not image.path("/root/.cache/pip").exists()
    assert (context.parent / "caches" / "pip" / "file").read_text() == "kept\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away and become another user")
def test_files_are_given_away_and_the_process_is_the_user(context: Path) -> None:
    image = build(context, BASE, "COPY --chown=10001:10002 code /data", "USER 10001:10002", 'ENTRYPOINT ["python"]')
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in (image.path("/data"), image.path("/data/hello.txt"))} == {(10001, 10002)}
    context.parent.chmod(0o755)
    words = image.as_user()
    assert words[1:5] == ["--reuid", "10001", "--regid", "10002"]


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([BASE, "ADD code /code"], "line 2: ADD is not an instruction that is known here"),
        (["WORKDIR /source", BASE], "before the first FROM"),
        (["FROM debian:12"], "debian:12 is no base that is known here"),
        ([BASE, "COPY secret /secret"], "line 2, COPY: there is no secret to copy; is it left out by .dockerignore?"),
        ([BASE, "COPY --from=build /opt /opt"], "there is no earlier stage build"),
        ([BASE, "COPY --link code /code"], "there is no --link to copy"),
        ([BASE, "COPY --chmod=755 code /code"], "the flag --chmod is not known here"),
        ([BASE, "ENV EDGELM_HOME"], "is not NAME=VALUE"),
        ([BASE, "ENV HERE=$THERE"], r"\$THERE is not set here"),
        ([BASE, "ENTRYPOINT edgelm"], "edgelm is not in exec form"),
        ([BASE, "HEALTHCHECK CMD edgelm doctor"], "edgelm doctor is not in exec form"),
        ([BASE, "USER edgelm"], "edgelm is not UID:GID in numbers"),
        ([BASE, "RUN --mount=type=bind,target=/code true"], "a mount type=bind,target=/code is not known here"),
        ([BASE, "RUN true \\"], "is continued, but nothing follows"),
        ([], "there is no FROM"),
    ],
)
def test_what_is_wrong_or_not_known_is_an_error(context: Path, lines: list[str], reason: str) -> None:
    with pytest.raises(DockerfileError, match=reason):
        build(context, *lines)


@pytest.mark.parametrize("command", ["mkdir /a/b/c", "apt-get install curl", "python -m no_such_module"])
def test_a_command_that_fails_is_an_error(context: Path, command: str) -> None:
    with pytest.raises(StepError, match=f"line 2, RUN: {command}: exit code [1-9]"):
        build(context, BASE, f"RUN {command}")


def test_an_entry_point_that_is_not_installed_is_an_error(context: Path) -> None:
    image = build(context, BASE, 'ENTRYPOINT ["edgelm"]')
    with pytest.raises(StepError, match="edgelm is not in the image's PATH"):
        image.start()


def test_continued_lines_are_one_instruction() -> None:
    (instruction,) = parse('# first\nHEALTHCHECK --interval=30s \\\n  --retries=3 \\\n  CMD ["true"]\n')
    assert (instruction.line, instruction.flags, instruction.text) == (2, {"interval": "30s", "retries": "3"}, 'CMD ["true"]')


def test_the_last_rule_that_fits_decides_what_is_ignored() -> None:
    rules = ignore_rules("# all but the code\n*\n!code\n**/__pycache__\n**/*.key\n")
    kept = ["code/a.py", "code/deep/b.py", "code", "code/key"]
    left_out = ["README", "codes/a.py", "code/__pycache__/a.pyc", "code/deep/__pycache__", "code/deep/x.key", ".git/config"]
    assert [path for path in [*kept, *left_out] if not is_ignored(rules, path)] == kept
    with pytest.raises(ValueError, match="docs/page"):
        ignore_rules("*\n!docs/page\n")

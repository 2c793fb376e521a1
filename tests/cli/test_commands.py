"""What all commands share: help, one line for an error, exit codes."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from daxmount import daxfs, environment

from daxfs.cli.command import Group, command
from daxfs.cli.main import main
from daxfs.errors import CommandError, CorruptionError, MountExit

NAMES = sorted(main.commands)


def make(failure: BaseException) -> Group:
    """A group with one command, which fails with *failure*."""

    @click.group(cls=Group)
    def group() -> None:
        pass

    @command("deed", example="daxfs deed")
    def deed() -> None:
        raise failure

    group.add_command(deed)
    return group


def test_all_commands_are_there() -> None:
    assert {"mkfs", "mount", "umount", "fsck", "info", "stat", "map", "smaps"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_help_has_a_description_and_an_example(name: str) -> None:
    result = CliRunner().invoke(main, [name, "--help"])
    assert result.exit_code == 0
    usage, _, rest = result.output.partition("\n\n")
    assert usage.startswith(f"Usage: daxfs {name}")
    assert len(rest.split("\n\n")[0].split()) > 3
    assert f"Example:\n    daxfs {name}" in result.output


def test_without_a_command_it_shows_the_help() -> None:
    result = CliRunner().invoke(main, [])
    assert result.exit_code == 0
    assert "Commands:" in result.output


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom daxfs.cli.main import main\n"
        "print(sorted({'numpy', 'trio', 'pyfuse3', 'rich', 'daxfs.fs', 'google_crc32c'}"
        " & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"


@pytest.mark.parametrize(
    ("failure", "line", "code"),
    [
        (CommandError("no image: make one", 7), "no image: make one", 7),
        (
            FileNotFoundError(2, "No such file or directory", "/x"),
            "/x: No such file or directory: check the path",
            1,
        ),
        (
            CorruptionError("inode 3: the checksum is wrong"),
            "inode 3: the checksum is wrong: check the image with 'daxfs fsck'",
            1,
        ),
        (MemoryError(), "out of memory: free some memory, or raise the limit on it", 1),
        (KeyboardInterrupt(), "interrupted", 130),
        (
            ZeroDivisionError("division\nby zero"),
            "unexpected ZeroDivisionError: division by zero: DAXFS_DEBUG=1 shows the traceback",
            1,
        ),
    ],
)
def test_every_failure_is_one_line(failure: BaseException, line: str, code: int) -> None:
    result = CliRunner().invoke(make(failure), ["deed"])
    assert result.stderr == f"daxfs deed: {line}\n"
    assert result.stdout == ""
    assert result.exit_code == code


def test_debugging_shows_the_traceback_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAXFS_DEBUG", "1")
    result = CliRunner().invoke(make(ZeroDivisionError("zero")), ["deed"])
    assert "Traceback" in result.stderr
    assert "unexpected ZeroDivisionError: zero" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "start", "code"),
    [
        (["nothing"], "daxfs: No such command 'nothing'", 2),
        (["mkfs"], "daxfs mkfs: Missing argument 'IMAGE': see 'daxfs mkfs --help'", 2),
        (["mkfs", "--what"], "daxfs mkfs: No such option", 2),
        (["mount", "x"], "daxfs mount: Missing argument 'MOUNTPOINT'", MountExit.USAGE),
        (["umount"], "daxfs umount: Missing argument", MountExit.USAGE),
        (["fsck"], "daxfs fsck: Missing argument", 16),
        (["fsck", "-n", "-y", "x"], "daxfs fsck: -n, -y and -p exclude each other", 16),
    ],
)
def test_wrong_usage_is_one_line_with_the_right_code(
    arguments: list[str], start: str, code: int
) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.stderr.startswith(start)
    assert result.stderr.count("\n") == 1
    assert result.exit_code == code


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    image = tmp_path / "image"
    daxfs("mkfs", "--size", "1M", image)
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [sys.executable, "-m", "daxfs", "info", image],
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (result.returncode, result.stderr) == (141, b"")


@pytest.mark.parametrize(
    "arguments",
    [
        ["/images/a", "/mnt"],
        ["image", "/mnt", "-o", "rw,dev,suid"],
        [":memory:", "/mnt", "-o", "rw", "-o", "dev"],
    ],
)
def test_a_call_by_mount_fuse3_is_a_mount(arguments: list[str]) -> None:
    assert main.prepare(arguments) == ["mount", *arguments]


@pytest.mark.parametrize(
    "arguments",
    [["mkfz", "image"], ["info", "/images/a"], ["/images/a"], ["-o", "rw"], ["a", "-f"]],
)
def test_other_calls_are_not_taken_for_one_by_mount_fuse3(arguments: list[str]) -> None:
    assert main.prepare(arguments) == arguments


def test_a_disk_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"{tmp_path}/image"
    assert CliRunner().invoke(main, ["mkfs", "--size", "1M", path]).exit_code == 0

    def fail(fd: int, length: int, offset: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", fail)
    for words, code in ((["fsck", "-n", path], 8), (["info", path], 1)):
        result = CliRunner().invoke(main, words)
        assert (result.exit_code, result.output.count("\n")) == (code, 1), result.output
        assert f"daxfs {words[0]}: {path}: Input/output error at 2048: " in result.output


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_command_works_where_standard_files_are_closed(tmp_path: Path, closed: str) -> None:
    path = f"{tmp_path}/image"
    for words in (f"mkfs --size 1M {path}", f"info {path}", f"fsck -n {path}"):
        line = f'"{sys.executable}" -m daxfs {words} {closed}'
        assert subprocess.run(["sh", "-c", line], env=environment()).returncode == 0, line

"""What all commands share: one line for an error, the right exit code, never a traceback.

Every failure of a command becomes one line on stderr, ``daxfs COMMAND: what: what to do``. One that
nobody foresaw names its exception; with DAXFS_DEBUG=1 in the environment the traceback is printed
too.

Invariant: the modules of this package import at their top only what is quick to import (click,
errors, units); trio, pyfuse3, numpy and the layers are imported inside the commands, so that
``daxfs --help`` answers at once.
"""

import errno
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

import click

from daxfs.errors import CommandError
from daxfs.units import parse_size

DEBUG_VARIABLE = "DAXFS_DEBUG"

_ADVICE = {
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.ELOOP: "check the path",
    errno.ENAMETOOLONG: "take a shorter path",
    errno.EISDIR: "name a file, not a directory",
    errno.EACCES: "check the permissions, or run this as root",
    errno.EPERM: "check the permissions, or run this as root",
    errno.EROFS: "take a file on a writable filesystem",
    errno.ENOSPC: "free some space there, or take a smaller size",
    errno.EDQUOT: "free some space there, or take a smaller size",
    errno.EFBIG: "take a smaller size",
    errno.EBUSY: "end what uses it first",
    errno.EINVAL: "take one of at least 1M that 'daxfs mkfs' has made",
    errno.EUCLEAN: "check the image with 'daxfs fsck'",
    errno.EIO: "see 'daxfs badblocks list', and check the image with 'daxfs fsck'",
    errno.ENOTCONN: "its daemon is gone: detach it with 'daxfs umount'",
}


class ExitCodes(NamedTuple):
    """What a command exits with when it is called wrongly, fails, meets a bug, is interrupted."""

    usage: int = 2
    failure: int = 1
    internal: int = 1
    interrupted: int = 128 + signal.SIGINT


class Failure(Exception):
    """A command has failed: the line to print, and the exit code."""

    def __init__(self, line: str, code: int) -> None:
        super().__init__(line)
        self.code = code


class Command(click.Command):
    """A command whose failures end as a Failure, with the exit codes in *codes*."""

    codes = ExitCodes()
    group = "daxfs"
    """What to write before its name to call it."""
    section: tuple[str, Sequence[tuple[str, str]]] | None = None
    """A title and a list of words with what they mean, shown behind the options."""
    note = ""
    """A sentence that closes the description."""

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_help_text(ctx, formatter)
        if self.note:
            formatter.write_paragraph()
            with formatter.indentation():
                formatter.write_text(self.note)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        if self.section is not None:
            title, rows = self.section
            with formatter.section(title):
                formatter.write_dl(rows, col_max=32)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with failures(f"{self.group} {self.name}", self.codes):
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with failures(f"{self.group} {self.name}", self.codes):
            return super().invoke(ctx)


def command(
    name: str,
    *,
    example: str,
    codes: ExitCodes | None = None,
    note: str = "",
    section: tuple[str, Sequence[tuple[str, str]]] | None = None,
) -> Callable[[Callable[..., int | None]], Command]:
    """Make a function the command *name*, its help closed by *example* (lines of shell)."""
    lines = "\n".join(f"  {line}" for line in example.strip().splitlines())

    def decorate(function: Callable[..., int | None]) -> Command:
        made = click.command(
            name,
            cls=Command,
            epilog=f"\b\nExample:\n{lines}",
            context_settings={"help_option_names": ["-h", "--help"]},
        )(function)
        made.codes = codes or ExitCodes()
        made.note = note
        made.section = section
        return made

    return decorate


def _open_standard_files() -> None:
    """Have descriptors 0, 1 and 2 where they were closed: a file of ours must not get one."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        if fd == 1:
            sys.stdout = os.fdopen(1, "w")
        elif fd == 2:
            sys.stderr = os.fdopen(2, "w")
    os.close(fd)


class Group(click.Group):
    """The ``daxfs`` command: runs a command and turns its Failure into a line and an exit code."""

    def main(self, args: Sequence[str] | None = None, *_: Any, **__: Any) -> NoReturn:
        arguments = list(sys.argv[1:] if args is None else args)
        _open_standard_files()
        for stream in (sys.stdout, sys.stderr):
            # A name that the locale has no letters for must not end a repair in the middle.
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        try:
            with failures("daxfs", ExitCodes()):
                result = super().main(
                    self.prepare(arguments), prog_name="daxfs", standalone_mode=False
                )
                sys.stdout.flush()
            code = result if isinstance(result, int) else 0
        except Failure as failure:
            code = failure.code
            _say(str(failure))
        sys.exit(code)

    def prepare(self, arguments: list[str]) -> list[str]:
        """*arguments* with the command put in front where mount.fuse3 leaves it out.

        mount(8) runs ``daxfs IMAGE MOUNTPOINT -o OPTIONS`` for a filesystem of type fuse.daxfs.
        """
        if not arguments:
            return ["--help"]
        if len(arguments) < 2 or arguments[0] in self.commands:
            return arguments
        source, mountpoint, *rest = arguments
        flags = rest[0::2]
        called_by_mount = (
            not source.startswith("-")
            and not mountpoint.startswith("-")
            and len(rest) % 2 == 0
            and all(flag == "-o" for flag in flags)
            and (flags or "/" in source or source == ":memory:")
        )
        return ["mount", *arguments] if called_by_mount else arguments


@contextmanager
def failures(name: str, codes: ExitCodes) -> Iterator[None]:
    """Turn whatever goes wrong inside into a Failure of the command *name*."""
    try:
        yield
    except (Failure, click.exceptions.Exit):
        raise
    except BrokenPipeError as error:
        _forget_stdout()
        raise Failure("", 128 + signal.SIGPIPE) from error
    except (KeyboardInterrupt, click.Abort) as error:
        raise Failure(f"{name}: interrupted", codes.interrupted) from error
    except CommandError as error:
        raise Failure(_line(name, str(error)), error.code) from error
    except click.UsageError as error:
        text = error.format_message().rstrip(".")
        raise Failure(_line(name, f"{text}: see '{name} --help'"), codes.usage) from error
    except click.ClickException as error:
        raise Failure(_line(name, error.format_message()), codes.failure) from error
    except OSError as error:
        _trace()
        raise Failure(_line(name, explain(error)), codes.failure) from error
    except MemoryError as error:
        _trace()
        line = f"{name}: out of memory: free some memory, or raise the limit on it"
        raise Failure(line, codes.failure) from error
    except Exception as error:
        _trace()
        text = f"unexpected {type(error).__name__}: {error}: {DEBUG_VARIABLE}=1 shows the traceback"
        raise Failure(_line(name, text), codes.internal) from error


def explain(error: OSError, *, subject: str | None = None) -> str:
    """``what: what to do`` for *error*, which happened to *subject* unless it says so itself."""
    text = error.strerror or str(error)
    named = subject if error.filename is None else os.fsdecode(error.filename)
    if named and named not in text:
        text = f"{named}: {text}"
    advice = _ADVICE.get(error.errno or 0)
    return f"{text}: {advice}" if advice else text


class SizeType(click.ParamType[int]):
    """A size in bytes, written with a suffix K, M, G or T."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class PathType(click.Path):
    """A path, not looked at: click would wait on a mount whose daemon does not answer."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value


SIZE = SizeType()
PATH = PathType()
"""A path: what is wrong with it, the command says."""


def _line(name: str, text: str) -> str:
    return f"{name}: {' '.join(text.split())}"


def _say(line: str) -> None:
    if line:
        try:
            click.echo(line, err=True)
        except BrokenPipeError:
            return


def _trace() -> None:
    if os.environ.get(DEBUG_VARIABLE, "") not in ("", "0"):
        traceback.print_exc()


def _forget_stdout() -> None:
    """Nobody reads stdout any more: keep the interpreter from flushing it once again at exit."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        return

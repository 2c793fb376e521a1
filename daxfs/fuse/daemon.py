"""Mount in the background: fork, wait until the mount is usable, leave the daemon behind.

The parent returns when the child says over a pipe that it is ready, or why it is not. The fork
comes first: locks, threads and the event loop belong to the child alone.
"""

import contextlib
import json
import logging
import os
import signal
import sys
from typing import NoReturn

from daxfs.errors import CommandError, MountExit
from daxfs.fuse import mounting, session
from daxfs.fuse.logs import log_path, start_logging
from daxfs.fuse.options import MountOptions

log = logging.getLogger(__name__)


def mount_in_foreground(
    image_spec: str, mountpoint: str, options: MountOptions, *, size: int | None
) -> None:
    """Serve until it is unmounted. Raises CommandError."""
    start_logging()
    session.run(image_spec, mountpoint, options, size=size, ready=lambda: None)


def mount_in_background(
    image_spec: str, mountpoint: str, options: MountOptions, *, size: int | None
) -> None:
    """Return when the mount is usable; a daemon serves it. Raises CommandError, and no daemon.

    The process is expected to end soon: SIGINT is ignored afterwards, since the mount is made.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    parent = _Parent(reader)
    signal.signal(signal.SIGINT, parent.interrupt)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _detach_from_terminal()
        _serve(image_spec, mountpoint, options, size, writer)
    os.close(writer)
    os.waitpid(child, 0)
    try:
        parent.wait()
    except DaemonDied:
        # It may have been killed after it was attached.
        mounting.detach_dead(mounting.resolve(mountpoint))
        raise


class DaemonDied(CommandError):
    """The daemon ended without a word."""


class _Parent:
    """The waiting side. An interrupt never cuts a line: it is kept until it can be acted upon."""

    def __init__(self, reader: int) -> None:
        self._pipe = os.fdopen(reader, "rb")
        self._daemon = 0
        self._interrupted = False

    def interrupt(self, number: int, frame: object) -> None:
        """The handler of SIGINT: end the daemon."""
        self._interrupted = True
        if self._daemon:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._daemon, signal.SIGTERM)

    def wait(self) -> None:
        """Return when the daemon is ready. Raises CommandError, KeyboardInterrupt."""
        self._daemon = json.loads(self._pipe.readline() or b"0")
        if self._interrupted:
            self.interrupt(signal.SIGINT, None)
        line = self._pipe.readline()
        if not self._interrupted:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._pipe.read()  # a daemon that is not ready has the other end until it is gone
        if self._interrupted:
            raise KeyboardInterrupt
        verdict = json.loads(line or b"null")
        if verdict is None:
            raise DaemonDied("the daemon died: its log may tell why", MountExit.INTERNAL)
        if verdict:
            raise CommandError(verdict["error"], verdict["code"])


def _detach_from_terminal() -> None:
    """In the child: go on as a process of its own session that is not its leader (daemon(7))."""
    os.setsid()
    if os.fork() != 0:
        os._exit(0)
    os.umask(0o077)


def _redirect(writer: int) -> None:
    """No input, no output, stderr to the log file; no other descriptor but *writer* stays."""
    null = os.open(os.devnull, os.O_RDWR)
    try:
        path = log_path()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        out = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except (OSError, RuntimeError):  # RuntimeError: the user has no home
        out = null
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.dup2(out, 2)
    os.closerange(3, writer)
    os.closerange(writer + 1, os.sysconf("SC_OPEN_MAX"))


def _serve(
    image_spec: str, mountpoint: str, options: MountOptions, size: int | None, writer: int
) -> NoReturn:
    """The daemon. It says over *writer*: its number; then {} when it is ready, or what failed."""
    said = False

    def say(verdict: object) -> None:
        os.write(writer, json.dumps(verdict).encode() + b"\n")

    def ready() -> None:
        nonlocal said
        said = True
        os.chdir("/")  # the image and the mountpoint, which may be relative paths, are found
        say({})
        os.close(writer)

    code = 0
    try:
        _redirect(writer)
        say(os.getpid())
        start_logging()
        session.run(image_spec, mountpoint, options, size=size, ready=ready)
    except BaseException as error:
        known = isinstance(error, CommandError)
        code = error.code if isinstance(error, CommandError) else MountExit.INTERNAL
        text = str(error) if known else f"unexpected {type(error).__name__}: {error}"
        if said or not known:
            log.error("%s", text, exc_info=None if known else error)
        if not said:
            say({"error": text, "code": code})
    finally:
        logging.shutdown()
        os._exit(code)

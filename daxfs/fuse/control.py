"""The control socket: one JSON request and one JSON answer a line, for ``daxfs stat`` and others.

Kernel counterpart: the files of /sys/fs/ext4 and /sys/kernel/tracing.

Each mount has a unix socket in the runtime directory (``runtime_directory``), mode 0600; a peer
must be root or the user that the daemon runs as. The mount's root tells where it is, in the
attribute ``user.daxfs.control``. Requests are objects with "op"; an answer that failed has "error":

    {"op": "stat"}              figures of the mount (see Answers.stat)
    {"op": "info"}              the image and the options
    {"op": "map", "ino": N}     extents and index entries of inode N
    {"op": "trace", "action": "enable" | "disable" | "read"}    the fs_dax events
    {"op": "remount", "read_only": true | false}    the daemon's part of a remount; with "atime"
                                and "diratime" (see options) also when access times are set
    {"op": "badblocks", "action": "add" | "clear", "first": N, "count": N}    sectors of the image;
                                or with "ino", "offset", "length": bytes of a file

This module is the asking side and what both sides share; ``control_server`` answers.
"""

import json
import os
import socket
from typing import Any, Final

from daxfs.errors import CommandError
from daxfs.fuse.mountinfo import FSTYPE, mounts_of

CONTROL_XATTR: Final = "user.daxfs.control"
TIMEOUT_SECONDS: Final = 30.0
"""A peer that neither asks nor takes its answer for so long is dropped."""

Answer = dict[str, Any]


def locate(path: str) -> str:
    """The control socket of the mount that *path* lies on. CommandError if it is no daxfs."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}") from error
    device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    roots = [entry for entry in mounts_of(device) if entry.fstype == FSTYPE and entry.root == "/"]
    if not roots:
        raise CommandError(f"{path}: is not on a daxfs: see 'findmnt -t {FSTYPE}'")
    try:
        return os.fsdecode(os.getxattr(roots[-1].mountpoint, CONTROL_XATTR))
    except OSError as error:
        raise CommandError(f"{path}: its control socket is not known: {error.strerror}") from error


class Client:
    """Asks the daemon of one mount; a context manager."""

    def __init__(self, path: str) -> None:
        """Connect to the daemon of the mount that *path* lies on. CommandError if that fails."""
        place = locate(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(TIMEOUT_SECONDS)
        try:
            self._socket.connect(place)
        except OSError as error:
            self._socket.close()
            raise CommandError(
                f"{path}: no answer at {place}: {error.strerror}: "
                "ask as root or as the user who mounted it"
            ) from error
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect."""
        self._file.close()
        self._socket.close()

    def request(self, op: str, **values: Any) -> Answer:
        """The answer to request *op* with *values*. CommandError if the daemon has none."""
        try:
            self._socket.sendall(json.dumps({"op": op, **values}).encode() + b"\n")
            line = self._file.readline()
        except OSError as error:
            raise CommandError(f"the daemon does not answer: {error}") from error
        if not line.endswith(b"\n"):
            raise CommandError("the daemon does not answer: it has closed the connection")
        answer: Answer = json.loads(line)
        if "error" in answer:
            raise CommandError(str(answer["error"]))
        return answer

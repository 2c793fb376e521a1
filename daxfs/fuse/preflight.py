"""What a process must have to mount, and what to do where it has not.

A container is given the two things one by one: the device by ``--device /dev/fuse``, the capability
by ``--cap-add SYS_ADMIN``. Without either, the kernel says the same: not permitted.

Sources: fuse(4), capabilities(7), proc_pid_status(5), mount(2).
"""

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

CAP_SYS_ADMIN: Final = 1 << 21

_CONTAINER_MARKS = ("/.dockerenv", "/run/.containerenv")
_CONTAINER_VARIABLES = ("container", "KUBERNETES_SERVICE_HOST")


class Rights(NamedTuple):
    """What this process has. device_error: errno of opening *device*, 0 if it can be opened."""

    device: str
    device_error: int
    capable: bool
    """Whether it, or the fusermount3 that it runs, has SYS_ADMIN."""
    container: bool


def rights(device: str) -> Rights:
    """The rights of this process."""
    capable = is_capable(_status(), root=os.geteuid() == 0)
    return Rights(device, _error_of_opening(device), capable, in_container())


def why_not(have: Rights) -> str | None:
    """One line that says what is missing and what gives it; None if nothing is."""
    if have.container:
        return _container(have)
    if have.device_error:
        return _device(have)
    if not have.capable:
        return (
            "mounting needs the capability SYS_ADMIN, which was taken from this process: "
            "start it with all capabilities of root, and without no_new_privs"
        )
    return None


def is_capable(status: Mapping[str, str], *, root: bool) -> bool:
    """Whether /proc/self/status allows mounting: root by itself, others through fusermount3.

    fusermount3 is setuid root: it gets what the bounding set has, but nothing under no_new_privs.
    """
    if root:
        return _has(status, "CapEff")
    return _has(status, "CapBnd") and status.get("NoNewPrivs", "0") != "1"


def in_container() -> bool:
    """Whether this process runs in a container."""
    return any(map(os.path.exists, _CONTAINER_MARKS)) or any(
        name in os.environ for name in _CONTAINER_VARIABLES
    )


def _container(have: Rights) -> str | None:
    missing, flags = [], []
    if have.device_error == errno.EACCES:
        return (
            f"the user of this container may not open {have.device}: run it as root, or let the "
            f"host allow all users (chmod 666 {have.device})"
        )
    if have.device_error:
        missing.append(f"{_without(have)} {have.device}")
        flags.append("--device /dev/fuse")
    if not have.capable:
        missing.append("lacks the capability SYS_ADMIN")
        flags.append("--cap-add SYS_ADMIN")
    if not missing:
        return None
    return f"this container {' and '.join(missing)}: start it with {' '.join(flags)}"


def _without(have: Rights) -> str:
    return "has no" if have.device_error == errno.ENOENT else "may not use"


def _device(have: Rights) -> str:
    if have.device_error == errno.ENOENT:
        return f"{have.device} is missing: load the module (modprobe fuse)"
    if have.device_error in (errno.ENODEV, errno.ENXIO):
        return f"{have.device}: the kernel has no FUSE: load the module (modprobe fuse)"
    if have.device_error in (errno.EACCES, errno.EPERM):
        return (
            f"{have.device}: permission denied: have root allow its use (chmod 666 {have.device})"
        )
    return f"{have.device}: {os.strerror(have.device_error)}"


def _error_of_opening(device: str) -> int:
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _status() -> dict[str, str]:
    lines = Path("/proc/self/status").read_text(errors="replace").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _has(status: Mapping[str, str], name: str) -> bool:
    """Whether the capability set *name* has SYS_ADMIN; assumed where the kernel does not tell."""
    return bool(int(status.get(name, f"{CAP_SYS_ADMIN:x}"), 16) & CAP_SYS_ADMIN)

"""The main job as an ordinary user, who has fusermount3 and the right to open /dev/fuse, no more.

python -m daxfs.bench.unprivileged FOLDER REPEATS     run as that user; prints JSON
"""

import json
import os
import shutil
import stat
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from daxfs.bench.workspace import Mount, make_hole, make_image, read_hole, run
from daxfs.errors import CommandError

NOBODY = 65534
FUSE_DEVICE = Path("/dev/fuse")
HOLE_BYTES = 1 << 30
_FUSE_NUMBER = (10, 229)  # Documentation/admin-guide/devices.txt


def as_ordinary_user(argv: Sequence[str], uid: int = NOBODY) -> list[str]:
    """*argv* run as the user *uid* without any privilege of root; we are root.

    Where the interpreter lies in a folder that only root may enter, the user keeps one capability,
    to read it. Where /dev/fuse is closed to ordinary users (a bare container; every distribution
    opens it), the command gets a mount namespace with a device node that is open.
    """
    become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    if _fails([*become, sys.executable, "-c", "import daxfs"]):
        become += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    command = [*become, *argv]
    if FUSE_DEVICE.stat().st_mode & stat.S_IROTH:
        return command
    script = (
        "mount -t tmpfs -o mode=755 tmpfs /mnt && mknod -m 666 /mnt/fuse c {} {} && "
        'mount --bind /mnt/fuse {} && exec "$@"'
    ).format(*_FUSE_NUMBER, FUSE_DEVICE)
    return ["unshare", "--mount", "/bin/sh", "-c", script, "sh", *command]


def _fails(argv: Sequence[str]) -> bool:
    try:
        run(argv)
    except CommandError:
        return True
    return False


def why_not() -> str | None:
    """None when an ordinary user can be played here, else the reason."""
    if os.getuid() != 0:
        return "this is an ordinary user already: all other rows are its figures"
    for program in ("setpriv", "unshare", "fusermount3"):
        if shutil.which(program) is None:
            return f"no {program} here"
    return None


def main(argv: list[str]) -> None:
    """As the ordinary user: mount, read the hole (one pass does not count), unmount."""
    folder, repeats = Path(argv[0]), int(argv[1])
    os.environ["HOME"] = str(folder)
    make_image(folder / "image", "64M")
    passes = []
    with Mount(folder / "image", folder / "mnt", "dax=always") as mount:
        make_hole(mount.point / "hole", HOLE_BYTES)
        for number in range(repeats + 1):
            result = read_hole(mount.point / "hole")
            if number:
                passes.append(asdict(result))
    json.dump(passes, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])

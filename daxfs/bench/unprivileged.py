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
_NAMESPACES = ("unshare", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child")
_FUSE_NUMBER = (10, 229)  # Documentation/admin-guide/devices.txt


def as_ordinary_user(argv: Sequence[str], uid: int = NOBODY) -> list[str]:
    """*argv* run as the user *uid* without any privilege of root; we are root.

    Where the interpreter lies in a folder that only root may enter, the user keeps one capability,
    to read it. Where /dev/fuse is closed to ordinary users (a bare container; every distribution
    opens it), there is a device node that is open. All is in namespaces of its own, so that the
    mount and its daemon end with the command even if that is killed.
    """
    become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    # Through a shell: setpriv itself still has root's rights when it looks for the program.
    if _fails([*become, "/bin/sh", "-c", 'exec "$0" -c "import daxfs"', sys.executable]):
        become += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    open_device = (
        "mount -t tmpfs -o mode=755 tmpfs /mnt && mknod -m 666 /mnt/fuse c {} {} && "
        "mount --bind /mnt/fuse {} && "
    ).format(*_FUSE_NUMBER, FUSE_DEVICE)
    if FUSE_DEVICE.stat().st_mode & stat.S_IROTH:
        open_device = ""
    script = open_device + 'exec "$@"'
    return [*_NAMESPACES, "/bin/sh", "-c", script, "sh", *become, *argv]


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
    os.environ["XDG_RUNTIME_DIR"] = str(folder)
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

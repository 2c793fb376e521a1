"""Mounts of an ordinary user, through fusermount3."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from daxmount import COMMAND, DaxMount, run

pytestmark = pytest.mark.mount

MakeMount = Callable[..., DaxMount]
READER = Path(__file__).parent.parent / "support" / "reader.py"


def _as_owner(mount: DaxMount, script: str, *arguments: str) -> str:
    return run([*mount.client(), sys.executable, "-c", script, *arguments]).stdout


def test_ordinary_user_mounts_writes_unmounts_and_finds_everything_again(
    unprivileged: MakeMount,
) -> None:
    mount = unprivileged()
    write = (
        "import os, sys; os.chdir(sys.argv[1]); open('f', 'w').write('mine'); os.mkdir('d')\n"
        "os.setxattr('f', 'user.x', b'x'); os.chmod('f', 0o640); print(os.stat('f').st_uid)\n"
    )
    assert int(_as_owner(mount, write, str(mount.path))) == mount.user.uid
    mount.remount()
    read = "import os, sys; os.chdir(sys.argv[1]); print(open('f').read(), *sorted(os.listdir()))"
    assert _as_owner(mount, read, str(mount.path)).split() == ["mine", "d", "f"]


def test_hole_pages_of_an_ordinary_users_mount_do_not_stay(unprivileged: MakeMount) -> None:
    mount = unprivileged(size="128M")
    make = "import os, sys; os.truncate(os.open(sys.argv[1], os.O_CREAT | os.O_RDWR), 1 << 28)"
    file = str(mount.path / "hole")
    _as_owner(mount, make, file)
    seen = run([*mount.client(), sys.executable, READER, file, "0"]).stdout
    assert json.loads(seen) == {"pages": 1 << 16, "nonzero": 0, "rss": 0}


def test_root_may_not_look_into_an_ordinary_users_mount(unprivileged: MakeMount) -> None:
    mount = unprivileged()
    look = ["nsenter", f"--mount=/proc/{mount.pid}/ns/mnt", "ls", mount.path]
    refused = run(look, check=False)
    assert refused.returncode != 0
    assert "denied" in refused.stderr


def test_readahead_that_needs_root_is_left_out_without_a_word(unprivileged: MakeMount) -> None:
    mount = unprivileged("readahead=2M")
    run([*mount.client(), "ls", mount.path])  # answered once the daemon has set all that it may
    mount.stop()
    mount.check_log()


def test_owner_reads_statistics_through_the_control_socket(unprivileged: MakeMount) -> None:
    mount = unprivileged()
    shown = run([*mount.client(), *COMMAND, "stat", "--json", mount.path])
    assert json.loads(shown.stdout)["entries"]["pmd_zero"] == 0


def test_ordinary_user_unmounts_with_daxfs_umount(unprivileged: MakeMount) -> None:
    mount = unprivileged()
    mount.stop_with([*mount.client(), *COMMAND, "umount", mount.path])


def test_allow_other_that_fuse_conf_forbids_fails_in_one_line(unprivileged: MakeMount) -> None:
    conf = Path("/etc/fuse.conf")
    if conf.exists() and "user_allow_other" in conf.read_text().splitlines():
        pytest.skip("/etc/fuse.conf allows allow_other here")
    mount = unprivileged("allow_other", start=False)
    mount.checked = False
    with pytest.raises(AssertionError, match="allow_other"):
        mount.start()

"""Calls in all combinations where a rule says the result: types, owners, rights, a full image.

Each test writes the script that it plays.
"""

import errno
import itertools
import os
from collections.abc import Callable

import pytest
from daxmount import DaxMount
from posixscript import USERS, Cast

pytestmark = pytest.mark.mount

MOUNT = {"options": "suid,dev" if os.geteuid() == 0 else "", "size": "64M"}
MakeMount = Callable[..., DaxMount]
Play = Callable[[str], None]

TYPES = ("file", "dir", "fifo", "char", "block", "socket", "link")
OWNERS = ("alice", "bob", "root")


def test_rename_of_every_type_onto_every_type(play: Play) -> None:
    lines = ["root mkdir a -> ok", "root mkdir b -> ok"]
    for old, new, target in itertools.product(TYPES, TYPES, ("a/new", "b/new")):
        lines += [f"root make a/old {old} -> ok", f"root make {target} {new} -> ok"]
        folders = {"a": "mc", target[0]: "mc"}
        if (old == "dir") != (new == "dir"):
            paths = ",".join(["a/old", target, *folders])
            result = "ENOTDIR" if old == "dir" else "EISDIR"
            lines.append(f"root moves {paths} rename a/old {target} -> {result}")
            lines.append("root remove a/old -> ok")
        else:
            times = {target: "c", **folders}
            if new != "dir":
                lines.append(f"root link {target} other -> ok")
                times["other"] = "c"
            paths = ",".join([f"a/old>{target}", *list(times)[1:]])
            result = " ".join(f"{path}:{moved}" for path, moved in times.items())
            lines.append(f"root moves {paths} rename a/old {target} -> {result}")
            lines.append("root lstat a/old type -> ENOENT")
            lines.append(f"root lstat {target} type -> {old}")
            if new != "dir":
                lines += [f"root lstat other type,nlink -> {new},1", "root remove other -> ok"]
        lines.append(f"root remove {target} -> ok")
    lines += ["root lstat a nlink -> 2", "root lstat b nlink -> 2"]
    play("\n".join(lines))


@pytest.mark.parametrize("kind", TYPES)
def test_sticky_directory_of_every_owner_with_files_of_every_owner(play: Play, kind: str) -> None:
    lines = [
        "root mkdir sticky -> ok",
        "root mkdir open -> ok",
        "root chmod sticky 01777 -> ok",
        "root chmod open 0777 -> ok",
    ]
    for directory, owner in itertools.product(OWNERS, OWNERS):
        may = "alice" in (directory, owner)
        # To move a directory elsewhere is to change its "..".
        stays = kind == "dir" and owner != "alice"
        leaves = "EPERM" if not may else "EACCES" if stays else "ok"
        ids = " ".join(2 * [str(USERS[owner].uid)])
        lines += [
            f"root chown sticky {USERS[directory].uid} -1 -> ok",
            f"root make sticky/f {kind} -> ok",
            f"root lchown sticky/f {ids} -> ok",
            f"alice rename sticky/f open/f -> {leaves}",
            "root rename open/f sticky/f -> " + ("ok" if leaves == "ok" else "ENOENT"),
            "alice rename sticky/f sticky/g -> " + ("ok" if may else "EPERM"),
            "root rename sticky/g sticky/f -> " + ("ok" if may else "ENOENT"),
            f"root make open/f {kind} -> ok",
            "root lchown open/f 60001 60001 -> ok",
        ]
        if may:
            lines += ["alice rename open/f sticky/f -> ok", "root lstat sticky/f uid -> 60001"]
        else:
            lines += [
                "alice moves sticky/f,sticky,open/f,open rename open/f sticky/f -> EPERM",
                "alice moves sticky/f,sticky remove sticky/f -> EPERM",
                "root remove open/f -> ok",
                f"root lchown sticky/f {ids} -> ok",
            ]
        lines.append("{} remove sticky/f -> ok".format("alice" if may else "root"))
    play("\n".join(lines))


def test_every_right_of_owner_group_and_others(play: Play) -> None:
    lines = [
        "root open f creat|wronly -> ok",
        "root mkdir d -> ok",
        "root open d/x creat|wronly -> ok",
        "root mkdir d/y -> ok",
        "root chown d 60001 60001 -> ok",
        "root chown f 60001 60001 -> ok",
        "root chmod d/x 0777 -> ok",
    ]
    for (user, shift), bits, others in itertools.product(
        (("alice", 6), ("carol", 3), ("bob", 0)), range(8), (0, 0o777)
    ):
        mode = others & ~(7 << shift) | bits << shift
        can = {letter: bool(bits & bit) for letter, bit in (("r", 4), ("w", 2), ("x", 1))}

        def when(rights: str, ok: str = "ok", can: dict[str, bool] = can) -> str:
            return ok if all(can[letter] for letter in rights) else "EACCES"

        lines += [
            f"root chmod f {mode:o} -> ok",
            f"root chmod d {mode:o} -> ok",
            f"{user} open f rdonly -> {when('r')}",
            f"{user} open f wronly -> {when('w')}",
            f"{user} open f rdwr -> {when('rw')}",
            f"{user} open f rdonly|trunc -> {when('rw')}",
            f"{user} open f wronly|trunc -> {when('w')}",
            f"{user} open f creat|rdwr -> {when('rw')}",
            f"{user} truncate f 0 -> {when('w')}",
            f"{user} getxattr f user.x -> {when('r', 'ENODATA')}",
            f"{user} ls d -> {when('r', 'x,y')}",
            f"{user} stat d/x size -> {when('x', '0')}",
            f"{user} open d/x rdwr -> {when('x')}",
            f"{user} chdir d -> {when('x')}",
            f"{user} chdir {'..' if can['x'] else '.'} -> ok",
        ]
        lines += [f"{user} access f {right} -> {'yes' if can[right] else 'no'}" for right in "rwx"]
        if can["w"] and can["x"]:
            changes = ["rename d/x d/z", "link d/z d/x", "unlink d/z", "mkdir d/z", "rmdir d/z"]
        else:
            changes = ["rename d/x d/z", "link d/x d/z", "unlink d/x", "mkdir d/z", "rmdir d/y"]
        lines += [f"{user} {change} -> {when('wx')}" for change in changes]
    play("\n".join(lines))


def test_modes_and_owners_of_what_is_made(play: Play) -> None:
    makers = {
        "file": "open n creat|wronly {}",
        "dir": "mkdir n {}",
        "fifo": "mkfifo n {}",
        "socket": "mknod n socket {}",
    }
    lines = ["root chmod . 0777 -> ok"]
    for kind, call in makers.items():
        for umask, mode, result in (
            ("0", "0151", "0151"),
            ("0", "0", "0000"),
            ("077", "0151", "0100"),
            ("070", "0345", "0305"),
            ("0501", "0345", "0244"),
            ("0", "01777", "1777"),
        ):
            lines += [
                f"alice umask {umask} -> ok",
                f"alice {call.format(mode)} -> ok",
                f"root lstat n type,mode,uid,gid -> {kind},{result},60001,60001",
                "root remove n -> ok",
            ]
        sgid = "2711" if kind == "dir" else "0711"
        lines += [
            "alice umask 066 -> ok",
            "root chown . -1 60002 -> ok",
            "root chmod . 02777 -> ok",
            f"alice {call.format('0777')} -> ok",
            f"root lstat n mode,uid,gid -> {sgid},60001,60002",
            "root remove n -> ok",
            # The group of the folder is none of hers, and the new file shall run as that group.
            f"alice {call.format('02777')} -> ok",
            f"root lstat n mode -> {sgid}",
            "root remove n -> ok",
            "root chmod . 0777 -> ok",
        ]
    play("\n".join(lines))


MAKES = (
    "mkdir {} -> ENOSPC",
    "symlink t {} -> ENOSPC",
    "open {} creat|wronly -> ENOSPC",
    "mkfifo {} -> ENOSPC",
    "mknod {} socket -> ENOSPC",
)


def _until_full(make: Callable[[int], object]) -> int:
    """How often *make*, called with 0, 1 and so on, works until it finds no space."""
    for count in itertools.count():
        try:
            make(count)
        except OSError as error:
            assert error.errno == errno.ENOSPC  # noqa: PT017 - the loop has no other end
            return count
    raise AssertionError


def test_full_image_changes_nothing(make_mount: MakeMount, as_root: None, cast: Cast) -> None:
    mount = make_mount(size="4M", inodes=40)
    free = os.statvfs(mount.path)
    folder = mount.path / "folder"
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "f").touch()
    os.chown(folder / "f", 60001, 60001)

    # No inode is left: nothing can be made, though names can.
    count = _until_full(lambda i: (folder / f"{i}").touch(exist_ok=False))
    script = [
        f"{user} moves . {call.format('new')}" for user in ("root", "alice") for call in MAKES
    ]
    script += ["alice moves f,. link f new -> f:c .:mc", "alice rename new newer -> ok"]
    cast.play("\n".join(script), folder)
    (folder / "newer").unlink()
    for i in range(count):
        (folder / f"{i}").unlink()

    # No block is left, and no room for a name in the folder's own blocks.
    with (mount.path / "big").open("wb", buffering=0) as big:
        _until_full(lambda _: os.write(big.fileno(), bytes(4096)))
    name = "x" * 240
    links = 1 + _until_full(lambda i: os.link(folder / "f", folder / f"{i:05}{name}"))
    calls = [*MAKES, "link f {} -> ENOSPC", "rename f {} -> ENOSPC"]
    script = [
        f"{user} moves f,. {call.format('{250}')}" for user in ("root", "alice") for call in calls
    ]
    script += [
        "alice write f x -> ENOSPC",
        f"root lstat f size,nlink -> 0,{links}",
        "root lstat {250} type -> ENOENT",
    ]
    cast.play("\n".join(script), folder)

    (mount.path / "big").unlink()
    for entry in list(folder.iterdir()):
        entry.unlink()
    folder.rmdir()
    assert os.statvfs(mount.path).f_bfree == free.f_bfree
    assert os.statvfs(mount.path).f_ffree == free.f_ffree

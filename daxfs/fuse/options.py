"""Mount options: what ``-o`` may say, in the kernel's words.

Kernel counterpart: ext4_fs_parameters and the generic flags of mount(8).
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, get_args

from daxfs.errors import CommandError, MountExit
from daxfs.units import format_size, parse_size

DaxMode = Literal["always", "never", "inode"]
PersistMode = Literal["auto", "memory", "msync"]
AtimeMode = Literal["relatime", "noatime", "strictatime"]
ErrorsMode = Literal["continue", "remount-ro"]

HOLE_CACHE_MAX: Final = 1 << 40
READAHEAD_MAX: Final = 1 << 30
POLL_MAX_US: Final = 10_000

# For libfuse, which makes mount flags of them.
_KERNEL_FLAGS: Final = frozenset(
    {"suid", "nosuid", "dev", "nodev", "exec", "noexec", "sync", "async", "dirsync"}
)
# For mount(8), systemd and fstab, or looked at elsewhere (remount); else always so.
_IGNORED: Final = frozenset(
    {
        "remount",
        "defaults",
        "default_permissions",
        "auto",
        "noauto",
        "nofail",
        "_netdev",
        "user",
        "nouser",
    }
    | {"users", "nousers", "owner", "noowner", "group", "nogroup"}
    | {"user_xattr", "norelatime", "lazytime", "nolazytime", "silent", "loud"}
    | {"iversion", "noiversion"}
)

_ATIME_WORDS: Final = frozenset(
    {"atime", "noatime", "relatime", "norelatime", "strictatime", "nostrictatime"}
    | {"diratime", "nodiratime"}
)

# What the kernel shows of a mount, and mount(8) therefore repeats to remount it.
_SHOWN: Final = frozenset({"user_id", "group_id", "max_read"})


@dataclass(frozen=True)
class MountOptions:
    """The options of one mount. Sizes in bytes."""

    dax: DaxMode = "always"
    """Whether hole pages are taken back from the kernel: always, never, or by each inode's flag."""
    read_only: bool = False
    allow_other: bool = False
    """Whether other users may use the mount; root's mounts always allow it."""
    hole_cache: int = 8 << 20
    """Bytes of hole pages that the kernel may keep."""
    readahead: int = 1 << 20
    """Bytes; needs root to be more than the kernel's own choice."""
    poll: int = 100
    """Microseconds to stay awake after a request; 0: not at all."""
    persist: PersistMode = "auto"
    discard: bool = True
    """Whether freed blocks are given back to the host."""
    atime: AtimeMode = "relatime"
    diratime: bool = True
    """Whether reading a directory may set its access time."""
    errors: ErrorsMode = "continue"
    enable_acl: bool = False
    kernel_flags: tuple[str, ...] = field(default=())
    """Generic flags of mount(8) that the kernel itself looks after, such as ``noexec``."""


def _choice(name: str, attribute: str, literal: Any) -> "Callable[[str], dict[str, Any]]":
    choices = get_args(literal)

    def parse(text: str) -> dict[str, Any]:
        if text not in choices:
            raise ValueError(f"{name}={text}: it can be {', '.join(choices[:-1])} or {choices[-1]}")
        return {attribute: text}

    return parse


def _size(name: str, low: int, high: int) -> "Callable[[str], dict[str, Any]]":
    def parse(text: str) -> dict[str, Any]:
        try:
            size = parse_size(text)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        if not low <= size <= high:
            raise ValueError(
                f"{name}={text}: it can be from {format_size(low)} to {format_size(high)}"
            )
        return {name: size}

    return parse


def _poll(text: str) -> dict[str, Any]:
    if not (text.isascii() and text.isdigit() and int(text) <= POLL_MAX_US):
        raise ValueError(f"poll={text}: it is a number of microseconds, at most {POLL_MAX_US}")
    return {"poll": int(text)}


_FLAGS: Final[dict[str, dict[str, Any]]] = {
    "ro": {"read_only": True},
    "rw": {"read_only": False},
    "allow_other": {"allow_other": True},
    "discard": {"discard": True},
    "nodiscard": {"discard": False},
    "noatime": {"atime": "noatime"},
    "relatime": {"atime": "relatime"},
    "strictatime": {"atime": "strictatime"},
    "atime": {"atime": "relatime"},
    "nostrictatime": {"atime": "relatime"},
    "diratime": {"diratime": True},
    "nodiratime": {"diratime": False},
    "enable_acl": {"enable_acl": True},
    "acl": {"enable_acl": True},
    "noacl": {"enable_acl": False},
    "dax": {"dax": "always"},
}
_VALUES: Final[dict[str, Callable[[str], dict[str, Any]]]] = {
    "dax": _choice("dax", "dax", DaxMode),
    "hole_cache": _size("hole_cache", 0, HOLE_CACHE_MAX),
    "readahead": _size("readahead", 0, READAHEAD_MAX),
    "poll": _poll,
    "persist": _choice("persist", "persist", PersistMode),
    "errors": _choice("errors", "errors", ErrorsMode),
}

OPTIONS_HELP: Final = (
    ("dax=always|never|inode", "take hole pages back from the kernel: always (default), never "
     "(an ordinary page cache, with write-back), or as each file's FS_XFLAG_DAX says"),
    ("ro, rw", "mount read-only, or for writing (default)"),
    ("remount", "make a mount read-only or writable, change its flags and access times"),
    ("allow_other", "let other users in; always so for a mount by root"),
    ("hole_cache=SIZE", "how much of holes the kernel may keep in its page cache (8M)"),
    ("readahead=SIZE", "the kernel's readahead on this mount (1M; without root at most its own)"),
    ("poll=MICROSECONDS", "stay awake so long after a request, for short latencies (100; 0: off)"),
    ("persist=auto|memory|msync", "what fsync does: nothing more, or msync of the image; auto "
     "(default) goes by the filesystem that holds the image"),
    ("discard, nodiscard", "give freed blocks back to the host (default), or keep them"),
    ("relatime, noatime, strictatime", "when reading sets the access time (relatime)"),
    ("nodiratime", "never the access time of directories"),
    ("errors=continue|remount-ro", "whether damage found in the image makes the mount read-only"),
    ("enable_acl, acl", "POSIX access control lists"),
    ("[no]suid, [no]dev, [no]exec, sync, dirsync", "as in mount(8); nosuid,nodev is the default"),
)  # fmt: skip
"""Each option and what it does, for ``daxfs mount --help``."""


def parse_options(text: str) -> MountOptions:
    """The options in *text*, as after ``-o``: joined by commas, later ones winning.

    Raises CommandError(USAGE) with one line.
    """
    options = MountOptions()
    kernel_flags: dict[str, None] = {}
    for word in filter(None, (part.strip() for part in text.split(","))):
        name, has_value, value = word.partition("=")
        try:
            if has_value and name in _VALUES:
                options = replace(options, **_VALUES[name](value))
            elif not has_value and name in _FLAGS:
                options = replace(options, **_FLAGS[name])
            elif not has_value and name in _KERNEL_FLAGS:
                kernel_flags.pop(_opposite(name), None)
                kernel_flags[name] = None
            elif not _is_ignored(name, bool(has_value)):
                raise ValueError(_unknown(name, bool(has_value)))
        except ValueError as error:
            raise CommandError(f"option {error}", MountExit.USAGE) from None
    return replace(options, kernel_flags=tuple(kernel_flags))


def wants_remount(text: str) -> bool:
    """Whether the options in *text* are for a mount that is there already."""
    return "remount" in (part.strip() for part in text.split(","))


def mentions_atime(text: str) -> bool:
    """Whether the options in *text* say when access times are set."""
    return not _ATIME_WORDS.isdisjoint(part.strip() for part in text.split(","))


def _opposite(flag: str) -> str:
    opposites = {"sync": "async", "async": "sync"}
    return opposites.get(flag) or (flag[2:] if flag.startswith("no") else f"no{flag}")


def _is_ignored(name: str, has_value: bool) -> bool:
    if name.startswith(("x-", "X-")) or name == "comment":
        return True
    if has_value and name in _SHOWN:
        return True
    return not has_value and name in _IGNORED


def _unknown(name: str, has_value: bool) -> str:
    if has_value and name in _FLAGS:
        return f"{name} takes no value"
    if not has_value and name in _VALUES:
        return f"{name} needs a value"
    near = difflib.get_close_matches(name, [*_FLAGS, *_VALUES, *_KERNEL_FLAGS], n=1)
    hint = f": do you mean {near[0]}?" if near else ": 'daxfs mount --help' lists them"
    return f"{name!r} is not known{hint}"

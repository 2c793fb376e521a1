"""The parser of mount options."""

import pytest

from daxfs.errors import CommandError, MountExit
from daxfs.fuse.options import OPTIONS_HELP, MountOptions, parse_options, wants_remount


def test_no_options_are_the_defaults() -> None:
    assert parse_options("") == MountOptions()
    assert MountOptions().dax == "always"
    assert MountOptions().hole_cache == 8 << 20


def test_each_option_sets_its_field() -> None:
    options = parse_options(
        "dax=inode,ro,allow_other,hole_cache=16M,readahead=256K,poll=0,persist=msync,nodiscard,"
        "strictatime,nodiratime,errors=remount-ro,enable_acl,noexec"
    )
    assert options == MountOptions(
        dax="inode",
        read_only=True,
        allow_other=True,
        hole_cache=16 << 20,
        readahead=256 << 10,
        poll=0,
        persist="msync",
        discard=False,
        atime="strictatime",
        diratime=False,
        errors="remount-ro",
        enable_acl=True,
        kernel_flags=("noexec",),
    )


def test_later_options_win() -> None:
    options = parse_options("ro,rw,dax=never,dax,nosuid,suid,discard,nodiscard")
    assert not options.read_only
    assert options.dax == "always"
    assert options.kernel_flags == ("suid",)
    assert not options.discard


def test_what_fstab_and_systemd_add_is_accepted() -> None:
    text = "defaults,noauto,nofail,_netdev,user,x-systemd.automount,x-gvfs-show,comment=hello"
    assert parse_options(text) == MountOptions()


def test_words_of_mount_and_of_other_filesystems_are_known() -> None:
    assert parse_options("acl,user_xattr") == parse_options("enable_acl")
    assert parse_options("acl,noacl") == MountOptions()
    assert parse_options("noatime,atime,nodiratime,diratime") == MountOptions()
    assert parse_options("strictatime,nostrictatime,norelatime") == MountOptions()
    assert parse_options("lazytime,nolazytime,silent,loud,iversion,noiversion") == MountOptions()


def test_what_mount_repeats_of_a_mount_that_it_remounts_is_accepted() -> None:
    text = "ro,relatime,remount,user_id=0,group_id=0,default_permissions,allow_other"
    assert parse_options(text) == MountOptions(read_only=True, allow_other=True)
    assert wants_remount(text)
    assert not wants_remount("ro,x-remount")


def test_empty_words_and_spaces_are_nothing() -> None:
    assert parse_options(",, ro ,") == MountOptions(read_only=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dax=perhaps", ["dax=perhaps", "always, never or inode"]),
        ("hole_cache=x", ["hole_cache", "not a size"]),
        ("hole_cache=2T", ["hole_cache=2T", "from 0 B to"]),
        ("poll=-1", ["poll=-1", "microseconds"]),
        ("poll=99999", ["poll=99999", "10000"]),
        ("poll", ["poll", "needs a value"]),
        ("ro=1", ["ro", "takes no value"]),
        ("relatme", ["relatme", "relatime?"]),
        ("nofail=1", ["nofail", "not known"]),
        ("gibberish", ["gibberish", "--help"]),
    ],
)
def test_wrong_option_says_why_in_one_line(text: str, words: list[str]) -> None:
    with pytest.raises(CommandError) as raised:
        parse_options(f"ro,{text}")
    assert raised.value.code == MountExit.USAGE
    line = str(raised.value)
    assert "\n" not in line
    assert all(word in line for word in words), line


def test_help_names_every_option_with_a_value() -> None:
    named = " ".join(name for name, _ in OPTIONS_HELP)
    for option in ("dax=", "hole_cache=", "readahead=", "poll=", "persist=", "errors="):
        assert option in named

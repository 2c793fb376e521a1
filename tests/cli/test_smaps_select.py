"""Which entries of /proc/PID/smaps lie on a daxfs mount."""

from daxfs.cli.smaps import select

ENTRY = (
    "{start}-7f0000300000 r--s 00000000 00:{device} {ino}     {path}\nSize:   4 kB\nRss:  0 kB\n"
)
HEAP = "55c0e0000000-55c0e0021000 rw-p 00000000 00:00 0      [heap]\nSize:   132 kB\n"
ONE = ENTRY.format(start="7f0000000000", device="2f", ino=12, path="/mnt/one")
TWO = ENTRY.format(start="7f0000100000", device="2f", ino=13, path="/mnt/two (deleted)")
ELSEWHERE = ENTRY.format(start="7f0000200000", device="30", ino=12, path="/tmp/12")
TEXT = HEAP + ONE + ELSEWHERE + TWO


def test_only_mappings_on_the_mounts_devices_are_taken() -> None:
    assert list(select(TEXT, {(0, 0x2F)}, None)) == [ONE, TWO]


def test_a_file_is_known_by_device_and_number() -> None:
    assert list(select(TEXT, {(0, 0x2F)}, (0, 0x2F, 13))) == [TWO]
    assert list(select(TEXT, {(0, 0x2F)}, (0, 0x30, 12))) == []


def test_without_a_mount_there_is_nothing() -> None:
    assert list(select(TEXT, set(), None)) == []

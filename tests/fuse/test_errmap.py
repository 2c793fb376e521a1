"""What a request handler raises, and what the kernel is told."""

import errno
import logging
from collections.abc import Callable

import pytest
import trio

from daxfs.errors import CorruptionError, FsError, MediaError
from daxfs.fuse.errmap import handler
from daxfs.fuse.lowlevel import pyfuse3


class Owner:
    def __init__(self) -> None:
        self.ops: list[str] = []
        self.damage: list[CorruptionError | MediaError] = []
        self.lost = False

    def answered(self, op: str, start_ns: int) -> None:
        self.ops.append(op)

    def check_medium(self) -> None:
        if self.lost:
            raise MediaError("a page is gone")

    def corrupted(self, error: CorruptionError | MediaError) -> None:
        self.damage.append(error)

    @handler
    async def request(self, action: Callable[[], object]) -> object:
        return action()

    @handler
    async def sleeper(self) -> None:
        await trio.sleep_forever()


def _raise(error: BaseException) -> Callable[[], object]:
    def action() -> object:
        raise error

    return action


def test_answer_passes() -> None:
    owner = Owner()
    assert trio.run(owner.request, lambda: 42) == 42
    assert owner.ops == ["request"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FsError(errno.ENOSPC), errno.ENOSPC),
        (FileNotFoundError(errno.ENOENT, "no"), errno.ENOENT),
        (MediaError("bad"), errno.EIO),
        (CorruptionError("bad"), errno.EUCLEAN),
        (MemoryError(), errno.ENOMEM),
        (pyfuse3.FUSEError(errno.ENOSYS), errno.ENOSYS),
    ],
)
def test_exception_becomes_its_errno(
    error: Exception, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    owner = Owner()
    with pytest.raises(pyfuse3.FUSEError) as raised:
        trio.run(owner.request, _raise(error))
    assert raised.value.errno == code
    assert owner.ops == ["request"]
    assert not caplog.records


def test_damage_is_reported() -> None:
    owner = Owner()
    with pytest.raises(pyfuse3.FUSEError):
        trio.run(owner.request, _raise(CorruptionError("inode 7")))
    assert [error.strerror for error in owner.damage] == ["inode 7"]


@pytest.mark.parametrize("error", [KeyError("k"), AssertionError(), OSError("no number")])
def test_bug_is_logged_with_its_traceback_and_becomes_eio(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(pyfuse3.FUSEError) as raised:
        trio.run(Owner().request, _raise(error))
    assert raised.value.errno == errno.EIO
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert record.exc_info[1] is error


def test_cancellation_passes() -> None:
    owner = Owner()

    async def main() -> None:
        with trio.move_on_after(0) as scope:
            await owner.sleeper()
        assert scope.cancelled_caught

    trio.run(main)


def test_what_was_read_of_a_lost_page_is_no_answer() -> None:
    owner = Owner()
    owner.lost = True
    with pytest.raises(pyfuse3.FUSEError) as caught:
        trio.run(owner.request, lambda: b"zeroes")
    assert caught.value.errno == errno.EIO
    with pytest.raises(pyfuse3.FUSEError) as caught:
        trio.run(owner.request, _raise(FsError(errno.EBUSY)))
    assert caught.value.errno == errno.EIO
    assert len(owner.damage) == 2

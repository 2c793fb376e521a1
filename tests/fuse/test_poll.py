"""How requests are waited for: a pipe plays /dev/fuse."""

import os
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from daxfs.fuse.lowlevel import pyfuse3
from daxfs.fuse.poll import Poller, _ReadLock


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


@pytest.mark.parametrize("window_us", [0, 10_000])
def test_every_request_is_seen(pipe: tuple[int, int], window_us: int) -> None:
    reader, writer = pipe
    poller = Poller(window_us)
    taken = []

    async def serve() -> None:
        while len(taken) < 300:
            await poller.wait_readable(reader)
            taken.append(os.read(reader, 1))
            poller.note()

    async def main() -> None:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve)
                for number in range(300):
                    os.write(writer, bytes([number % 256]))
                    if number % 3 == 0:
                        await trio.sleep(0.0005)

    trio.run(main)
    assert b"".join(taken) == bytes(number % 256 for number in range(300))


def test_pending_requests_do_not_starve_other_tasks(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.write(writer, b"x")
    poller = Poller(100)

    async def greedy() -> None:
        while True:
            await poller.wait_readable(reader)  # it stays readable for ever
            poller.note()

    async def main() -> None:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(greedy)
                for _ in range(10):
                    await trio.sleep(0)
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_idle_waiter_sleeps(pipe: tuple[int, int]) -> None:
    """wait_all_tasks_blocked returns only if no task polls."""
    poller = Poller(10_000)

    async def main() -> None:
        poller.note()
        poller.note()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(poller.wait_readable, pipe[0])
            with trio.fail_after(20):
                await trio.testing.wait_all_tasks_blocked(0.02)
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_closed_device_ends_the_wait(pipe: tuple[int, int]) -> None:
    reader, writer = os.pipe()
    poller = Poller(0)

    async def main() -> None:
        with trio.fail_after(20):
            await poller.wait_readable(reader)

    os.close(writer)
    trio.run(main)
    os.close(reader)


def test_lock_admits_one_and_wakes_the_next() -> None:
    inside = 0
    turns = []

    async def main() -> None:
        lock = _ReadLock()

        async def worker(name: int) -> None:
            nonlocal inside
            for _ in range(3):
                async with lock:
                    inside += 1
                    assert inside == 1
                    await trio.sleep(0)
                    inside -= 1
                turns.append(name)
                await trio.sleep(0)

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for name in range(3):
                    nursery.start_soon(worker, name)

    trio.run(main)
    assert sorted(turns) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_pyfuse3_gets_its_trio_back() -> None:
    poller = Poller(0)
    with poller.installed():
        assert pyfuse3.trio is not trio  # type: ignore[attr-defined]
        assert pyfuse3.trio.ClosedResourceError is trio.ClosedResourceError  # type: ignore[attr-defined]
    assert pyfuse3.trio is trio  # type: ignore[attr-defined]

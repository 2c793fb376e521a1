"""Processes that share work end, whatever this process does with signals."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.util import Finalize
from pathlib import Path

import pytest

from daxfs.testing.jobs import processes

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def deaf() -> Iterator[None]:
    """SIGTERM does nothing to this process, nor to what it forks."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    yield
    signal.signal(signal.SIGTERM, before)


def _end_slowly(file: Path) -> None:
    """Have this process, as its last deed, write to *file* after a while."""
    Finalize(None, _write_late, (file,), exitpriority=0)


def _write_late(file: Path) -> None:
    time.sleep(0.2)
    with file.open("a") as ends:
        ends.write("ended ")


def test_done_work_ends_them_without_a_signal(tmp_path: Path) -> None:
    with processes(2, _end_slowly, (tmp_path / "ends",)) as pool:
        assert list(pool.imap(abs, [-1, 2, -3])) == [1, 2, 3]
    assert (tmp_path / "ends").read_text() == "ended ended "


@pytest.mark.parametrize("begin_seconds", [0.0, 0.3])
def test_work_that_is_given_up_ends_them_though_this_process_is_deaf(
    deaf: None, monkeypatch: pytest.MonkeyPatch, begin_seconds: float
) -> None:
    fork = os.fork

    def fork_slowly() -> int:
        process = fork()
        if not process:
            time.sleep(begin_seconds)
        return process

    def give_up() -> None:
        with processes(2) as pool:
            pool.map_async(time.sleep, [600, 600])
            raise ZeroDivisionError

    monkeypatch.setattr(os, "fork", fork_slowly)
    with pytest.raises(ZeroDivisionError):
        give_up()
    assert not multiprocessing.active_children()


def test_each_begins_by_what_it_is_told() -> None:
    with processes(1, signal.signal, (signal.SIGUSR1, signal.SIG_IGN), method="spawn") as pool:
        assert pool.apply(signal.getsignal, (signal.SIGUSR1,)) == signal.SIG_IGN

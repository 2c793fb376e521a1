"""The crash-state explorer: it finds nothing in daxfs, and it finds what is broken on purpose."""

import json
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from daxfs.journal.undo import Transaction
from daxfs.pmem.image import Image
from daxfs.pmem.persist import Buffer, Domain, Persist
from daxfs.testing.commands.main import main
from daxfs.testing.explorer import explore
from daxfs.testing.jobs import processors
from daxfs.testing.oracles import MakePersist
from daxfs.testing.replay import replay
from daxfs.testing.result import Result
from daxfs.testing.workloads import ONE, Workload, three, two, workload

SEED = 20261123


def found_nothing(result: Result) -> None:
    print(
        f"{result.workloads} workloads, {result.states} states, {len(result.distinct)} distinct, "
        f"{result.recoveries} recovered, {len(result.recovered)} distinct then, "
        f"{result.recovery_states} of interrupted recoveries, seed {SEED}"
    )
    assert [str(failure) for failure in result.failures] == []
    assert result.failing == 0


def skipping(kind: str, *callers: str) -> MakePersist:
    """A Persist that does no *kind* (flush or fence) for the functions called *callers*."""

    class Skipping(Persist):
        def flush(self, offset: int, length: int) -> None:
            if kind != "flush" or sys._getframe(1).f_code.co_name not in callers:
                super().flush(offset, length)

        def fence(self) -> None:
            if kind != "fence" or sys._getframe(1).f_code.co_name not in callers:
                super().fence()

    def make(image: Image, domain: Domain) -> Persist:
        return Skipping(image, domain)

    return make


def some(*names: str) -> list[Workload]:
    return [workload(name) for name in names]


# --- daxfs ---------------------------------------------------------------------------------------


@pytest.mark.timeout(1200)
def test_no_crash_state_of_one_operation_fails() -> None:
    result = explore(ONE, jobs=processors(), seed=SEED)
    found_nothing(result)
    assert result.workloads >= 350
    assert len(result.distinct) >= 100_000


@pytest.mark.timeout(600)
def test_no_crash_state_of_pairs_of_operations_fails() -> None:
    found_nothing(explore(islice(two(), 0, None, 97), jobs=processors(), seed=SEED))


@pytest.mark.timeout(600)
def test_no_crash_during_a_recovery_changes_what_it_comes_to() -> None:
    result = explore(ONE[::16], jobs=processors(), seed=SEED, recovery=True)
    found_nothing(result)
    assert result.recovery_states > 10_000


@pytest.mark.long
@pytest.mark.timeout(4 * 3600)
def test_no_crash_state_of_any_one_or_two_operations_fails() -> None:
    result = explore([*ONE, *two()], jobs=processors(), seed=SEED)
    found_nothing(result)
    assert result.workloads >= 14_400 + 350
    assert len(result.distinct) >= 1_000_000


@pytest.mark.long
@pytest.mark.timeout(2 * 3600)
def test_no_crash_state_of_three_operations_fails() -> None:
    found_nothing(explore(three(SEED, 10_000), jobs=processors(), seed=SEED, done=two()))


@pytest.mark.long
@pytest.mark.timeout(2 * 3600)
def test_no_crash_during_a_recovery_of_500_workloads_changes_what_it_comes_to() -> None:
    result = explore(ONE[:500], jobs=processors(), seed=SEED, recovery=True)
    found_nothing(result)
    assert result.recovery_workloads == 500


# --- what is broken ------------------------------------------------------------------------------

BROKEN: dict[str, tuple[MakePersist, str, str]] = {
    "a journal entry is not flushed": (skipping("flush", "_append"), "small/create", "1 2 6"),
    "a journal entry is not fenced": (
        skipping("fence", "log", "store", "store_u64", "fill"),
        "small/create",
        "1 2 6",
    ),
    "a changed range is not flushed": (skipping("flush", "store"), "small/setxattr", "1 2 3"),
    "a changed word is not flushed": (skipping("flush", "store_u64"), "small/unlink-x", "1 2 3 6"),
    "the commit does not fence what it commits": (
        skipping("fence", "_commit"),
        "small/create",
        "1 2 3 6",
    ),
    "the commit point is not flushed": (skipping("flush", "finish"), "small/create", "3"),
    "the commit point is not fenced": (skipping("fence", "finish"), "small/create", "3"),
    "new data are not flushed": (skipping("flush", "_store"), "small/append-new-page", "2 3 5"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_it_sees_that(what: str) -> None:
    make_persist, name, oracles = BROKEN[what]
    result = explore(some(name), make_persist=make_persist, stop_at_first=True)
    assert result.failing > 0
    assert result.failures[0].fault.split()[0] in oracles.split(), result.failures[0]


def test_it_sees_a_recovery_that_finishes_before_it_is_durable() -> None:
    make_persist = skipping("fence", "undo")
    workloads = some("small/create", "small/unlink-x")
    assert explore(workloads, make_persist=make_persist, stop_at_first=True).failures == []
    result = explore(workloads, make_persist=make_persist, recovery=True, stop_at_first=True)
    assert "/" in result.failures[0].id.partition("@")[2]


def test_it_sees_bytes_of_freed_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Persist, "fill", lambda self, offset, length, byte=0: None)
    result = explore(some("small/write-far"), stop_at_first=True)
    assert result.failures[0].fault.startswith("5 stale")


def test_it_sees_blocks_that_were_freed_before_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    from daxfs.alloc.blocks import BlockAllocator

    def free(self: BlockAllocator, tx: object, start: int, count: int) -> None:
        self._free_now(start, count)
        self.flush_discards()

    monkeypatch.setattr(BlockAllocator, "free_blocks", free)
    result = explore(some("small/unlink-f"), stop_at_first=True)
    assert result.failures


def test_a_failure_is_reduced_and_can_be_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    def store(self: Transaction, offset: int, data: Buffer) -> None:
        self.log(offset, len(data))
        self._persist.store(offset, data)

    monkeypatch.setattr(Transaction, "store", store)
    result = explore(some("small/mkdir+setxattr"), stop_at_first=True)
    failure = result.failures[0]
    assert failure.id.startswith(("small/mkdir@", "small/setxattr@"))
    assert failure.id.count(",") < 3
    lines, fault = replay(failure.id)
    assert any("crash" in line for line in lines)
    assert any("inode" in line for line in lines)
    assert fault == failure.fault


# --- counting ------------------------------------------------------------------------------------


def test_states_are_counted_once_and_the_same_each_time() -> None:
    names = ("small/create", "small/create+mkdir", "small/create+rename")
    one, two_of_it = explore(some(names[0])), explore(some(names[0], names[0]))
    assert np.array_equal(one.distinct.all(), two_of_it.distinct.all())
    together = explore(some(*names))
    apart = [explore(some(name)).distinct.all() for name in names]
    assert set(together.distinct.all().tolist()) <= set(np.concatenate(apart).tolist())
    assert np.array_equal(explore(some(*names), jobs=2).distinct.all(), together.distinct.all())


def test_of_a_workload_that_begins_like_an_explored_one_only_the_rest_is_explored() -> None:
    first, whole = some("small/create"), some("small/create+mkdir")
    rest = set(explore(whole, done=first).distinct.all().tolist())
    everything = set(explore(whole).distinct.all().tolist())
    beginning = set(explore(first).distinct.all().tolist())
    assert rest < everything
    assert everything <= rest | beginning


def test_it_ends_at_a_number_of_states_and_at_a_time() -> None:
    limited = explore(ONE, limit=1000)
    assert len(limited.distinct) >= 1000
    assert limited.workloads < 100
    assert explore(ONE[:20], seconds=0).workloads == 0


# --- the commands --------------------------------------------------------------------------------


def test_the_command_explores_and_writes_what_it_found(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    arguments = ["--workloads", "3", "--jobs", "1", "--domain", "memory", "--json", str(file)]
    ran = CliRunner().invoke(main, ["explore", *arguments])
    assert ran.exit_code == 0, ran.output
    found = json.loads(file.read_text())
    assert found["failures"] == []
    assert found["figures"]["workloads"] == 3
    assert 0 < found["figures"]["distinct_states"] <= found["figures"]["states"]


@pytest.mark.parametrize(("options", "workloads"), [("--workloads 1", 1), ("--minutes 0", 0)])
def test_samples_of_three_operations_end_as_told(
    tmp_path: Path, options: str, workloads: int
) -> None:
    file = tmp_path / "found.json"
    arguments = ["--steps", "3", "--jobs", "1", "--json", str(file), *options.split()]
    ran = CliRunner().invoke(main, ["explore", *arguments])
    assert ran.exit_code == 0, ran.output
    assert json.loads(file.read_text())["figures"]["workloads"] == workloads


def test_the_command_replays_a_state_and_refuses_what_is_none() -> None:
    ran = CliRunner().invoke(main, ["replay", "small/create@m0:"])
    assert (ran.exit_code, "no oracle fails" in ran.output) == (0, True)
    assert "create begins" in ran.output
    assert "---- crash ----" in ran.output
    for state in ("small/create@p9999:", "small/nothing@p1:", "nonsense"):
        assert CliRunner().invoke(main, ["replay", state]).exit_code == 2


def test_the_command_fails_when_a_state_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Transaction, "_commit", lambda self: None)
    ran = CliRunner().invoke(main, ["explore", "--workloads", "1", "--jobs", "1"])
    assert ran.exit_code == 1
    assert "scripts/crash-test replay 'empty/create@" in ran.output

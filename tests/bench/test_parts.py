"""fio's output, repeats, samples of the machine, and taking everything down again."""

import os
import signal
import sys
from pathlib import Path

import pytest

from daxfs.bench import machine, suite, workspace
from daxfs.bench.fio import fio_command, us_per_page
from daxfs.bench.passes import repeat
from daxfs.errors import CommandError

MEMINFO = "MemTotal:       24683520 kB\nActive(anon):      12 kB\nHugePages_Total:       0\n"


def test_kilobyte_fields_reads_meminfo_and_leaves_counts_out() -> None:
    assert machine.kilobyte_fields(MEMINFO) == {"MemTotal": 24683520, "Active(anon)": 12}


def test_fio_job_is_the_one_of_the_kernel_change(tmp_path: Path) -> None:
    path = tmp_path / "hole"
    workspace.make_hole(path, 1 << 30)
    command = fio_command(path, "read")
    assert {"--size=1073741824", "--fallocate=none", "--rw=read", "--ioengine=mmap"} <= {*command}
    assert "--io_size=4096" in fio_command(path, "randread", 4096)


def test_fio_time_is_runtime_over_reads_even_behind_a_warning() -> None:
    text = 'fio: a note\n{"jobs": [{"read": {"runtime": 1200, "total_ios": 262144}}]}'
    assert us_per_page(text) == pytest.approx(1200 * 1000 / 262144)


def test_repeat_leaves_the_warm_up_out() -> None:
    figures = iter([{"us": 9.0}, {"us": 1.0}, {"us": 2.0}])
    steps: list[str] = []
    assert repeat(lambda: next(figures), 2, steps.append) == {"us": [1.0, 2.0]}
    assert steps == ["warm-up", "repeat 1 of 2", "repeat 2 of 2"]


def test_watch_reports_the_peak_and_not_the_end() -> None:
    figures = iter([100, 250, 120])
    with machine.watch(lambda: next(figures, 110), interval_s=0.001) as peak:
        while peak.growth < 150:
            pass
    assert peak.growth == 150


def test_warm_memory_gives_back_what_it_touched() -> None:
    before = machine.anonymous_kb(os.getpid())
    assert machine.warm_memory(64 << 20) == 64 << 20
    assert machine.anonymous_kb(os.getpid()) - before < 32 << 10


def test_run_says_why_a_program_failed() -> None:
    with pytest.raises(CommandError, match="no such luck"):
        workspace.run([sys.executable, "-c", "raise SystemExit('no such luck')"])


def test_a_signal_becomes_one_exception_and_later_ones_are_ignored_while_unwinding() -> None:
    unwound = []

    def work() -> None:
        with workspace.interruptible():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                pytest.fail("not interrupted")
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                unwound.append(True)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(workspace.Interrupted) as caught:
        work()
    assert unwound
    assert caught.value.signum == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_workspace_is_gone_afterwards() -> None:
    with workspace.workspace() as folder:
        (folder / "image").write_bytes(b"x")
    assert not folder.exists()


MACHINE_FIGURES = {
    "never us": 1.0,
    "always us": 1.1,
    "tmpfs us": 2.0,
    "rss kB": 0,
    "settle ms": 250,
    "cache MiB": 12,
    "held MiB": 8,
    "daemon kB": 1024,
    "blocks": 0,
    "pmd zero": 512,
    "entries": 512,
}


def test_all_targets_of_a_good_pass_are_reached() -> None:
    assert {row.verdict for row in suite.machine_targets(MACHINE_FIGURES)} == {"pass"}


@pytest.mark.parametrize(
    "worse",
    [
        {"always us": 1.2},
        {"tmpfs us": 1.4},
        {"rss kB": 4},
        {"cache MiB": 17},
        {"held MiB": 17},
        {"daemon kB": 5000},
        {"blocks": 1},
        {"pmd zero": 511},
        {"entries": 513},
    ],
)
def test_each_figure_that_is_worse_fails_one_target(worse: dict[str, float]) -> None:
    rows = suite.machine_targets(MACHINE_FIGURES | worse)
    assert [row.verdict for row in rows].count("FAIL") == 1


def test_what_was_not_measured_is_skipped_and_never_passes() -> None:
    figures = {name: value for name, value in MACHINE_FIGURES.items() if name != "tmpfs us"}
    verdicts = [row.verdict for row in suite.machine_targets(figures)]
    assert verdicts.count("skipped") == 1
    for make_rows in (suite.cgroup_targets, suite.pread_targets, suite.user_targets):
        assert {row.verdict for row in make_rows({})} == {"skipped"}


def test_an_interrupted_program_does_not_outlive_us(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys, threading, time\n"
        "open(sys.argv[1], 'w').write(str(os.getpid()))\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "time.sleep(60)"
    )
    pid_file = tmp_path / "pid"
    with pytest.raises(workspace.Interrupted), workspace.interruptible():
        workspace.run([sys.executable, "-c", script, str(pid_file)])
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)

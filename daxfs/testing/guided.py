"""Hostile images chosen by the code that they reach: atheris (libFuzzer) drives ``hostile.Bench``.

libFuzzer mutates strings of bytes and keeps those that reach new branches of daxfs; a string stands
for an image through ``hostile.ByteDice``. This module, run as a program, is one such process:
atheris instruments modules while they are imported, so it must come first. Processes share their
corpus, a folder, through which one learns what another has found.
"""

import re
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Final

from daxfs.errors import CommandError
from daxfs.testing.jobs import processors
from daxfs.testing.outcome import Outcome

LENGTH_MAX: Final = 1024
"""Bytes of an input; what is done behind its end is decided by zeroes."""
BEGIN_WITH: Final = 64
_FAILURE: Final = "failure: "
_EXECUTED: Final = re.compile(r"stat::number_of_executed_units: (\d+)")
_COVERED: Final = re.compile(r"cov: (\d+) ft: (\d+)")
UNIT_SECONDS: Final = 300
"""An input that takes longer ends its process."""
_END_SECONDS: Final = 120.0


def fuzz_guided(*, seconds: float, jobs: int | None = None, corpus: str | None = None) -> Outcome:
    """Let *jobs* processes search for *seconds*; *corpus*: a folder that keeps what they learn.

    Raises CommandError where atheris is not installed.
    """
    if find_spec("atheris") is None:
        raise CommandError("atheris is not installed: run pip install 'daxfs[fuzz]'")
    jobs = jobs or processors()
    with tempfile.TemporaryDirectory(prefix="daxfs-guided-") as scratch:
        corpus = corpus or f"{scratch}/corpus"
        _begin(Path(corpus))
        started = time.monotonic()
        logs = [Path(scratch, f"log-{number}") for number in range(jobs)]
        processes = [_start(log, corpus, scratch, str(round(seconds))) for log in logs]
        for process in processes:
            _wait(process, started + seconds + _END_SECONDS)
        elapsed = time.monotonic() - started
        outputs = [log.read_text(errors="replace") for log in logs]
        kept = sum(1 for _ in Path(corpus).iterdir())
    executed = sum(int(n) for output in outputs for n in _EXECUTED.findall(output))
    branches = max(
        (int(cov) for output in outputs for cov, _ in _COVERED.findall(output)), default=0
    )
    outcome = Outcome("fuzz guided by coverage", {"jobs": jobs, "images": executed})
    outcome.figures |= {"kept_in_corpus": kept, "edges_covered": branches, "seconds": elapsed}
    outcome.figures["images_per_s"] = executed / max(elapsed, 1e-9)
    for process, output in zip(processes, outputs, strict=True):
        lines = output.splitlines()
        outcome.failures += [
            line.removeprefix(_FAILURE) for line in lines if line.startswith(_FAILURE)
        ]
        if process.returncode:
            outcome.failures.append(f"a process ended with {process.returncode}: {lines[-12:]}")
    return outcome


def _begin(corpus: Path) -> None:
    """Give an empty corpus some images to begin with."""
    corpus.mkdir(parents=True, exist_ok=True)
    if not any(corpus.iterdir()):
        for number in range(BEGIN_WITH):
            (corpus / f"begin-{number}").write_bytes(Random(number).randbytes(LENGTH_MAX // 2))


def _start(log: Path, *words: str) -> "subprocess.Popen[bytes]":
    argv = [sys.executable, "-m", "daxfs.testing.guided", *words]
    with log.open("wb") as file:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file)


def _wait(process: "subprocess.Popen[bytes]", deadline: float) -> None:
    """Return when *process* has ended, which it does by force at *deadline* (monotonic)."""
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _search(corpus: str, scratch: str, seconds: str) -> None:
    """One process: never returns."""
    import atheris

    with atheris.instrument_imports(include=["daxfs"]):
        from daxfs.testing.hostile import Bench, Case, limit_time

    bench = Bench()
    seen: set[str] = set()

    def one(data: bytes) -> None:
        case = Case("x" + data.rstrip(b"\0").hex())
        message = bench.fails(case)
        if message is None or message[:40] in seen:
            return
        seen.add(message[:40])
        reduced = bench.reduce(case)
        line = f"{message} (scripts/crash-test fuzz --replay {reduced})".replace("\n", " ")
        print(f"{_FAILURE}{line}", flush=True)

    limit_time()
    options = [f"-max_total_time={seconds}", f"-max_len={LENGTH_MAX}", "-print_final_stats=1"]
    options += ["-len_control=0", "-reload=10", "-rss_limit_mb=4096", f"-timeout={UNIT_SECONDS}"]
    options += [f"-artifact_prefix={scratch}/", corpus]
    atheris.Setup([sys.argv[0], *options], one)
    atheris.Fuzz()


if __name__ == "__main__":
    _search(*sys.argv[1:])

"""Kill the daemon, or its clients, at random moments under load, and see that nothing is lost.

A round mounts an image, lets the clients (``clients``) work on it, and ends the daemon in one of
several ways. Then all clients must end, fsck must find nothing but what a mount mends, the next
mount must just work, and what is there must be what the clients' notes allow. The image of a job
goes on through all its rounds, with its free blocks filled with 0xDB between them.

The seed and the number of jobs give the mounts, loads, ways and moments of all rounds; how far each
program has come by then is up to the machine.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from daxfs.testing import clients
from daxfs.testing.clients import Client, Storm, View, Writer
from daxfs.testing.jobs import processes
from daxfs.testing.outcome import Outcome
from daxfs.testing.site import Failed, Hang, Site, is_stopped, wait_until

SIZE: Final = "64M"
LARGE: Final = 5 << 20
SHARED: Final = 1 << 18

OPTIONS: Final = (
    "dax=always",
    "dax=always,nodiscard",
    "dax=always,hole_cache=64K",
    "dax=always,persist=msync",
    "dax=inode",
    "dax=inode,nodiscard",
    "dax=never",
    "dax=never,nodiscard",
)
WAYS: Final = {
    "kill": 6,
    "kill within a change": 6,
    "stop and kill": 3,
    "SIGSEGV": 1,
    "SIGABRT": 1,
    "SIGTERM": 2,
    "SIGTERM twice": 2,
    "kill at the end": 3,
    "kill while unmounting": 2,
    "kill while asked": 2,
}
"""How often the daemon ends in each way."""

END_SECONDS: Final = 30.0
"""How long the clients of a dead daemon may take to end."""
_CHANGE_SECONDS: Final = 3.0
_ON_DISK_EVERY: Final = 4
_DAX_FLAG: Final = 0x8000


class Task(NamedTuple):
    """What one job does: *daemons* and *clients* are numbers of kills."""

    seed: int
    daemons: int
    clients: int
    on_disk: bool
    deadline: float


class Result(NamedTuple):
    """What a job has counted, and what went wrong."""

    counts: Counter[str]
    failures: list[str]


def run(*, kills: int, clients: int, minutes: float, seed: int, jobs: int) -> Outcome:
    """Kill daemons *kills* times and clients *clients* times; or, with *minutes*, so long."""
    start = time.monotonic()
    deadline = start + minutes * 60 if minutes else float("inf")
    endless = 1 << 30
    tasks = [
        Task(
            seed * 1000 + job,
            endless if minutes else len(range(job, kills, jobs)),
            endless if minutes else len(range(job, clients, jobs)),
            job % _ON_DISK_EVERY == 1,
            deadline,
        )
        for job in range(jobs)
    ]
    with processes(jobs, _end_when_told, method="spawn") as pool:
        results = pool.map(_job, tasks)
    counts: Counter[str] = sum((result.counts for result in results), Counter())
    seconds = time.monotonic() - start
    again = f"scripts/crash-test kill --kills {kills} --clients {clients} --jobs {jobs}"
    return Outcome(
        "kill",
        {
            **{name: counts[name] for name in sorted(counts)},
            "kills_per_minute": (counts["daemons_ended"] + counts["clients_killed"]) / seconds * 60,
            "seconds": seconds,
            "seed": seed,
        },
        [f"{line} ({again} --seed {seed})" for result in results for line in result.failures],
    )


def _end_when_told() -> None:
    """Have an interrupted run end its jobs by an exception, so that they leave no mount behind."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))


def _job(task: Task) -> Result:
    """All rounds of one job; it ends at the first failure and leaves what is needed to look."""
    os.umask(0)
    site = Site(size=SIZE, on_disk=task.on_disk)
    with contextlib.ExitStack() as stack:
        stack.callback(site.remove)
        load = Load(task.seed, site)
        stack.callback(load.kill_all_clients)
        try:
            while load.wants(task):
                if load.counts["clients_killed"] < task.clients:
                    load.kill_clients(min(8, task.clients - load.counts["clients_killed"]))
                if load.counts["daemons_ended"] < task.daemons:
                    load.kill_daemon()
        except Exception as error:
            text = str(error) if isinstance(error, Failed) else traceback.format_exc()
            site.release()
            stack.pop_all()
            where = f"{site.image.parent}: seed {task.seed}, {load.doing}"
            return Result(load.counts, [f"{text} [{where}]"])
    return Result(load.counts, [])


class Load:
    """A site with the clients that work on it."""

    def __init__(self, seed: int, site: Site) -> None:
        self.site = site
        self.counts: Counter[str] = Counter()
        self.doing = "made"
        self._seed = seed
        self._rounds = 0
        self._rng = random.Random(seed)
        self._processes: dict[int, int] = {}
        """The process of each client that runs, by its place in ``_clients``."""
        self._clients: list[Client] = []
        self.site.mount("dax=inode")
        self._clients = self.site.inside(self._make)
        self.site.unmount()

    def wants(self, task: Task) -> bool:
        """Whether *task* is not done yet."""
        return time.monotonic() < task.deadline and (
            self.counts["daemons_ended"] < task.daemons
            or self.counts["clients_killed"] < task.clients
        )

    def _make(self) -> list[Client]:
        """The clients, and what they work on, made on the mount."""
        top = self.site.mountpoint
        flagged = top / "flagged"
        for folder in (flagged, flagged / "deep", top / "crowd"):
            folder.mkdir(0o755)
        subprocess.run(["chattr", "+x", flagged], capture_output=True, check=False)
        for file, size in ((top / "alone", 0), (flagged / "alone", 0), (top / "shared", SHARED)):
            with open(file, "wb") as made:
                made.truncate(size * 2)
        return [
            Writer(top / "alone", LARGE),
            Writer(flagged / "alone", SHARED),
            Writer(top / "shared", SHARED, base=0),
            Writer(top / "shared", SHARED, base=SHARED),
            Storm(flagged / "deep", 60, depth=4),
            Storm(top / "crowd", 300, depth=0),
        ]

    # --- rounds -----------------------------------------------------------------------------------

    def _next_round(self) -> random.Random:
        """What makes the choices of the next round, however many were made in the one before."""
        self._rounds += 1
        self._rng = random.Random(f"{self._seed} {self._rounds}")
        return self._rng

    def kill_daemon(self) -> None:
        """One round that ends the daemon."""
        rng, site = self._next_round(), self.site
        options = rng.choice(OPTIONS)
        [way] = rng.choices(list(WAYS), list(WAYS.values()))
        self.doing = f"{options}, {way}, round {self.counts['daemons_ended']}"
        site.mount(options)
        self._start(range(len(self._clients)))
        time.sleep(rng.uniform(0.02, 0.8))
        self._expect_running()
        is_clean = self._end(way)
        site.wait_gone(END_SECONDS)
        self._join()
        self.counts["daemons_ended"] += 1
        if is_clean:
            site.check_clean()
        else:
            self.counts["changes_undone"] += site.check_crashed()
            self._kill_mounts(options)
        site.mount(rng.choice(OPTIONS))
        self._verify("cached" if options.startswith("dax=never") else "through")
        self._close()

    def kill_clients(self, count: int) -> None:
        """One mount on which *count* clients are killed, one after the other.

        What a killed client did is there at once, and still after the next mount; the others go
        on. Under dax=never one of them may be told of that (see ``_expect_running``).
        """
        rng, site = self._next_round(), self.site
        options = rng.choice(OPTIONS)
        site.mount(options)
        self._start(range(len(self._clients)))
        for nth in range(count):
            self.doing = f"{options}, killing clients, {self.counts['clients_killed']} so far"
            time.sleep(rng.uniform(0.02, 0.3))
            self._expect_running(but_told=bool(nth) and options.startswith("dax=never"))
            victim = rng.choice(range(len(self._clients)))
            os.kill(self._processes[victim], signal.SIGKILL)
            self._join([victim])
            self.counts["clients_killed"] += 1
            self._verify("seen", [victim])
            self._start([victim])
        self.kill_all_clients()
        self._join()
        self._verify("seen")
        site.unmount()
        site.check_clean()
        site.mount(rng.choice(OPTIONS))
        self._verify("through")  # nothing is pending: all of it must be the same
        self._close()

    def _close(self) -> None:
        self.site.unmount()
        self.site.check_clean()
        self.site.poison()

    def kill_all_clients(self) -> None:
        """Kill the clients that run, whatever state they are in."""
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    # --- ways to end ------------------------------------------------------------------------------

    def _end(self, way: str) -> bool:
        """End the daemon; whether it had the time to leave a clean image."""
        site, rng = self.site, self._rng
        match way:
            case "kill within a change":
                self._stop_within_change()
            case "stop and kill":
                site.signal(signal.SIGSTOP)
                time.sleep(rng.uniform(0.02, 0.3))
                for process in rng.sample(list(self._processes.values()), 2):
                    os.kill(process, signal.SIGKILL)
            case "SIGSEGV" | "SIGABRT":
                site.signal(signal.Signals[way])
                return False
            case "SIGTERM" | "SIGTERM twice":
                site.signal(signal.SIGTERM)
                if way == "SIGTERM twice":
                    time.sleep(rng.uniform(0, 0.1))
                    site.signal(signal.SIGTERM)
                return True
            case "kill at the end":
                site.signal(signal.SIGTERM)
                time.sleep(rng.uniform(0, 0.15))
            case "kill while unmounting":
                self.kill_all_clients()
                self._join_only()
                self._beside("umount")
                return False
            case "kill while asked":
                self._beside("stat")
                return False
        site.signal(signal.SIGKILL)
        return False

    def _stop_within_change(self) -> None:
        """Stop the daemon in the middle of a change of metadata, if it is found in one soon."""
        deadline = time.monotonic() + _CHANGE_SECONDS
        pauses = random.Random(self._rng.random())
        while time.monotonic() < deadline:
            self.site.signal(signal.SIGSTOP)
            if not wait_until(lambda: is_stopped(self.site.pid), END_SECONDS):
                raise Hang("the daemon cannot be stopped")
            if self.site.is_within_change():
                return
            self.site.signal(signal.SIGCONT)
            time.sleep(pauses.uniform(0, 0.005))

    def _beside(self, command: str) -> None:
        """Kill the daemon while ``daxfs COMMAND`` runs."""
        process = self.site.start(command, self.site.mountpoint)
        time.sleep(self._rng.uniform(0.1, 0.35))
        self.site.signal(signal.SIGKILL)
        self.site.finish(process, f"daxfs {command}")

    def _kill_mounts(self, options: str) -> None:
        """Kill some mounts while they recover the image."""
        for _ in range(self._rng.choice((0, 0, 1, 3))):
            words = ("mount", "-f", "-o", options, self.site.image, self.site.mountpoint)
            process = self.site.start(*words)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(self._rng.uniform(0.15, 0.5))
            if process.poll() is not None:
                raise Failed(f"the mount after the kill failed: {process.communicate()[1]}")
            process.kill()
            process.communicate()
            self.counts["mounts_killed"] += 1

    # --- clients ----------------------------------------------------------------------------------

    def _start(self, places: "range | list[int]") -> None:
        for place in places:
            client, seed = self._clients[place], self._rng.random()
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
            log = os.open(self._notes(place), flags, 0o600)
            process = os.fork()
            if process == 0:
                code = 1
                try:
                    clients.run(client, log, random.Random(seed))
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            os.close(log)
            self._processes[place] = process

    def _notes(self, place: int) -> Path:
        return self.site.notes(str(place))

    def _last_notes(self, place: int) -> list[list[Any]]:
        """What the client at *place* noted last: what it had begun, and how that ended."""
        return [json.loads(line) for line in self._notes(place).read_text().splitlines()[-2:]]

    def _expect_running(self, *, but_told: bool = False) -> None:
        """No client has ended while the daemon lives; *but_told*, but those told of a killed one.

        With its write-back cache the kernel sends the times of a file (SETATTR) after most changes.
        Is the program killed before the daemon has taken that request, the kernel withdraws it and
        notes an error of the file's pages, though none was lost. The next one that closes or syncs
        the file, or that has its pages written before a punch or a direct write, is told of it.
        Others take the place of those.
        """
        for place, process in list(self._processes.items()):
            if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                last = self._last_notes(place)
                word, *rest = last[-1] if last else [""]
                if not (but_told and word == "error" and rest[0] in clients.TOLD):
                    raise Failed(f"client {self._clients[place].name} ended by itself: {last}")
                self._join([place])
                self._verify("seen", [place])
                self._start([place])
                self.counts["clients_told"] += 1

    def _join(self, places: list[int] | None = None) -> None:
        """Wait for the end of clients, all unless *places* says which; those left are killed.

        A program that finds all it needs in the page cache goes on without the daemon.
        """
        self._join_only(places, grace=1.0)

    def _join_only(self, places: list[int] | None = None, *, grace: float = END_SECONDS) -> None:
        for place in list(self._processes) if places is None else places:
            process = self._processes[place]
            status: list[int] = []

            def ended(process: int = process, status: list[int] = status) -> bool:
                pid, code = os.waitpid(process, os.WNOHANG)
                status += [code] if pid else []
                return bool(pid)

            if not wait_until(ended, grace):
                os.kill(process, signal.SIGKILL)
                if not wait_until(ended, END_SECONDS):
                    self.site.release()
                    raise Hang(f"client {self._clients[place].name} cannot be killed")
            del self._processes[place]
            if os.WIFEXITED(status[0]) and os.WEXITSTATUS(status[0]) != 0:
                name, last = self._clients[place].name, self._last_notes(place)
                raise Failed(f"client {name} failed: {last}")

    def _verify(self, view: View, places: list[int] | None = None) -> None:
        """What is there is what the notes allow, and is what the clients go on with."""
        for place in range(len(self._clients)) if places is None else places:
            notes = self._notes(place)
            text = notes.read_text() if notes.exists() else ""
            choice, count = clients.replay(self._clients[place], text, view)
            self.counts["operations"] += count
            name = self._clients[place].name
            self._clients[place] = self.site.inside(_first_right(choice, name))
            notes.unlink(missing_ok=True)


def _first_right(choice: list[Client], name: str) -> Callable[[], Client]:
    def first_right() -> Client:
        wrong = []
        for client in choice:
            fault = client.verify()
            if fault is None:
                return client
            wrong.append(fault)
        raise Failed(f"{name}: {'; or '.join(wrong)}")

    return first_right

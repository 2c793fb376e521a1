"""PostgreSQL with its data folder on the mount: benchmark, kill -9 under load, recovery, checks.

pgbench's transactions each add one amount to an account, a teller and a branch and note it in the
history, so the four sums are equal as long as no transaction is lost or torn. Page checksums are
on: pg_checksums then reads every page of the stopped server.
"""

import contextlib
import glob
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daxmount import NOBODY, DaxMount, run

MakeMount = Callable[..., DaxMount]
BINARIES = (sorted(glob.glob("/usr/lib/postgresql/*/bin")) or [""])[-1]
"""Debian keeps the server's programs of each version in a folder off the PATH."""


def _program(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join(filter(None, [BINARIES, os.environ["PATH"]])))


pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(_program("initdb") is None, reason="PostgreSQL is not installed"),
]

SETTINGS = """
listen_addresses = ''
shared_buffers = 8MB
min_wal_size = 32MB
max_wal_size = 64MB
checkpoint_timeout = 30s
"""
"""Small buffers and frequent checkpoints: the data files are written all the time."""

CLIENTS = 4
START_SECONDS = 60

SUMS = """
select sum(abalance) from pgbench_accounts union all
select sum(tbalance) from pgbench_tellers union all
select sum(bbalance) from pgbench_branches union all
select coalesce(sum(delta), 0) from pgbench_history
"""


class Server:
    """A database cluster in *data*; its socket and logs are in *home*."""

    def __init__(self, data: Path, home: Path) -> None:
        self.data = data
        self.home = home
        self.user: int | None = None
        if os.geteuid() == 0:  # the server refuses to run as root
            self.user = NOBODY
            os.chown(home, NOBODY, NOBODY)
        self.log = home / "server.log"
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "LC_ALL": "C",
            "PGHOST": str(home),
            "PGUSER": "daxfs",
            "PGDATABASE": "postgres",
        }

    def run(self, name: str, *words: str | Path) -> str:
        program = _program(name)
        assert program is not None, f"PostgreSQL lacks {name}"
        argv = [program, *words]
        return run(argv, user=self.user, cwd=self.home, env=self._environment).stdout

    def popen(self, name: str, *words: str | Path, output: Path) -> "subprocess.Popen[bytes]":
        program = _program(name)
        assert program is not None, f"PostgreSQL lacks {name}"
        with output.open("ab") as log:
            return subprocess.Popen(
                [program, *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.home,
                env=self._environment,
                user=self.user,
                group=self.user,
                extra_groups=None if self.user is None else [],
            )

    def initialize(self) -> None:
        self.data.mkdir(mode=0o700)
        if self.user is not None:
            os.chown(self.data, self.user, self.user)
        self.run("initdb", "-D", self.data, "-U", "daxfs", "-A", "trust", "-E", "UTF8", "-k")
        with (self.data / "postgresql.conf").open("a") as settings:
            settings.write(f"{SETTINGS}unix_socket_directories = '{self.home}'\n")

    @contextlib.contextmanager
    def running(self) -> "Iterator[subprocess.Popen[bytes]]":
        """The server, ready for clients; stopped at the end, if it was not killed."""
        process = self.popen("postgres", "-D", self.data, output=self.log)
        try:
            deadline = time.monotonic() + START_SECONDS
            while process.poll() is None:
                with contextlib.suppress(AssertionError):
                    self.query("select 1")
                    break
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.1)
            assert process.poll() is None, self.log.read_text()
            yield process
            if process.poll() is None:
                process.send_signal(signal.SIGINT)  # a fast shutdown
                assert process.wait(60) == 0, self.log.read_text()
        finally:
            self.kill(process)

    def kill(self, process: "subprocess.Popen[bytes]") -> None:
        """kill -9 of the server: of all processes that live in the data folder."""
        process.kill()
        process.wait(60)
        deadline = time.monotonic() + 60
        while alive := self._processes():
            assert time.monotonic() < deadline, f"processes that cannot be killed: {alive}"
            for pid in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    def _processes(self) -> list[int]:
        found = []
        for cwd in glob.glob("/proc/[0-9]*/cwd"):
            with contextlib.suppress(OSError):
                if os.readlink(cwd) == str(self.data):
                    found.append(int(cwd.split("/")[2]))
        return found

    def query(self, text: str) -> list[str]:
        words = ("-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", text)
        return self.run("psql", *words).split()

    def transactions(self) -> int:
        """How many transactions pgbench has made."""
        (count,) = self.query("select count(*) from pgbench_history")
        return int(count)

    def check_consistent(self) -> None:
        """The sums agree, and so do the indexes with their tables."""
        sums = self.query(SUMS)
        assert len(sums) == 4
        assert len(set(sums)) == 1, sums
        self.run("pg_amcheck", "--install-missing", "--heapallindexed", "postgres")


LOAD = ("-n", "-c", str(CLIENTS), "-j", "2")


@pytest.fixture
def home(workspace: Path) -> Iterator[Path]:
    """A folder that is not on the mount."""
    path = Path(tempfile.mkdtemp(prefix="postgresql-", dir=workspace))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def _kill_under_load(server: Server, seconds: float, kill: Callable[[], None]) -> int:
    """Call *kill* when clients have been busy for *seconds*; how many commits they were told of."""
    done = server.transactions()
    logs = server.home / f"transactions-{done}"
    client = server.popen(
        *("pgbench", *LOAD, "-T", "120", "-l", f"--log-prefix={logs}"),
        output=server.home / "client.log",
    )
    while client.poll() is None and server.transactions() == done:
        time.sleep(0.1)
    time.sleep(seconds)
    assert client.poll() is None, (server.home / "client.log").read_text()
    kill()
    assert client.wait(60) != 0, "it lost its server"
    return sum(path.read_bytes().count(b"\n") for path in server.home.glob(f"{logs.name}.*"))


def _check_recovered(server: Server, done: int, committed: int) -> None:
    """After *done* transactions *committed* more were told of; none is lost."""
    assert committed > 0
    server.check_consistent()
    recovered = server.transactions() - done
    # Each client may have had one commit on its way besides.
    assert committed <= recovered <= committed + CLIENTS


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("options", "seconds"),
    [
        pytest.param("dax=always", 5, id="5_s"),
        pytest.param("dax=always", 20, marks=pytest.mark.long, id="20_s"),
        pytest.param("dax=never", 20, marks=pytest.mark.long, id="20_s_dax_never"),
    ],
)
def test_postgresql_recovers_from_a_kill_under_load(
    make_mount: MakeMount, home: Path, options: str, seconds: int
) -> None:
    mount = make_mount(options, size="512M")
    mount.watch(570)
    server = Server(mount.path / "data", home)
    server.initialize()
    with server.running() as process:
        server.run("pgbench", "-i", "-q", "-s", "1")
        server.run("pgbench", *LOAD, "-T", str(seconds))
        done = server.transactions()
        assert done > 0
        committed = _kill_under_load(server, seconds / 2, lambda: server.kill(process))
    with server.running():
        assert "automatic recovery in progress" in server.log.read_text()
        _check_recovered(server, done, committed)
        sums = server.query(SUMS)
    server.run("pg_checksums", "--check", "-D", server.data)

    mount.stop()
    mount.fsck()
    mount.start()
    mount.watch(300)
    server.run("pg_checksums", "--check", "-D", server.data)
    with server.running():
        assert server.query(SUMS) == sums
        server.run("pgbench", *LOAD, "-t", "20")
        server.check_consistent()


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("options", ["dax=always", "dax=never"])
def test_postgresql_recovers_from_a_killed_daemon(
    make_mount: MakeMount, home: Path, options: str
) -> None:
    """What the server has written but not synced may be gone under dax=never, as in a power cut."""
    mount = make_mount(options, size="512M")
    server = Server(mount.path / "data", home)
    server.initialize()
    with server.running():
        server.run("pgbench", "-i", "-q", "-s", "1")
    for _ in range(3):
        mount.watch(270)
        with server.running() as process:
            done = server.transactions()
            committed = _kill_under_load(server, 3, lambda: (mount.kill(), server.kill(process)))
        mount.start()
        with server.running():
            _check_recovered(server, done, committed)
        server.run("pg_checksums", "--check", "-D", server.data)

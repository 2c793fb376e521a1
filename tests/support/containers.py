"""The container engine that scripts/test-container has made ready, for the tests of the image."""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from daxmount import run

START_SECONDS = 60
RUN_SECONDS = 280


@dataclass(frozen=True)
class Containers:
    """The engine, and what was built. folder: on the host, where images of daxfs may lie."""

    image: str
    suite: str
    project: str
    compose: Sequence[str]
    folder: Path

    @property
    def share(self) -> Path:
        """A folder of the host that is a shared mount."""
        return self.folder / "share"

    def docker(self, *words: str | Path, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run a docker command."""
        return run(["docker", *words], check=check, timeout=RUN_SECONDS, env=dict(os.environ))

    def run(
        self, flags: Sequence[str], *words: str, suite: bool = False, check: bool = True
    ) -> "subprocess.CompletedProcess[str]":
        """Run a container to its end."""
        return self.docker(*self._run("--rm"), *flags, self._name(suite), *words, check=check)

    @contextlib.contextmanager
    def started(self, flags: Sequence[str], *words: str) -> Iterator[str]:
        """A container in the background, by its number; removed at the end."""
        number = self.docker(*self._run("--detach"), *flags, self.image, *words).stdout.strip()
        try:
            yield number
        finally:
            self.docker("rm", "--force", number)

    def exit_code(self, number: str) -> int:
        """How the container ended."""
        return int(self.docker("inspect", "--format", "{{.State.ExitCode}}", number).stdout)

    def wait_for_mount(self, number: str, mountpoint: str) -> None:
        """Return when the daxfs in the container answers."""
        deadline = time.monotonic() + START_SECONDS
        while self.docker("exec", number, "daxfs", "stat", mountpoint, check=False).returncode:
            logs = self.docker("logs", number, check=False)
            assert time.monotonic() < deadline, logs.stdout + logs.stderr
            time.sleep(0.1)

    def _run(self, mode: str) -> list[str]:
        return ["run", mode, "--network", "none", "--label", f"daxfs.test={self.project}"]

    def _name(self, suite: bool) -> str:
        return self.suite if suite else self.image

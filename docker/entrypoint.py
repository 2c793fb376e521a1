"""PID 1 of the daxfs image: runs one command, and leaves no mount when it ends.

SIGTERM (``docker stop``), SIGINT and SIGHUP go to the command and to what it has started in its
process group. When the command has ended, every process that is left gets a SIGTERM, on which a
daxfs daemon writes everything back and unmounts. Only then does the container end; its exit code
is the command's.

Processes that lost their parent come to this one (it is a subreaper where it is not PID 1), so it
knows all that were started here, and none of another container or of the host.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
END_SECONDS = 8.0
"""How long the last processes may take to end; ``docker stop`` kills after 10 seconds."""

OWN_COMMANDS = ("mkfs", "mount", "umount", "fsck", "info", "stat", "map", "smaps")
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

HELP = """\
daxfs: a filesystem whose holes cost nothing. In a container it needs

  docker run --rm -it --device /dev/fuse --cap-add SYS_ADMIN \\
      --security-opt apparmor=unconfined IMAGE COMMAND

COMMAND is one of
  demo [--rounds N]    read a 1 GiB hole the old way and the new one; prints a table
  serve                mount on $DAXFS_MOUNT (/mnt/daxfs) until the container is stopped:
                       $DAXFS_IMAGE (:memory:, else a file, made if it is not there) of
                       $DAXFS_SIZE (1G), with the mount options $DAXFS_OPTIONS
  mkfs, mount, umount, fsck, info, stat, map, smaps
                       the commands of daxfs; each has --help
  any other program    for example
      sh -c 'daxfs mount --size 1G :memory: /mnt/daxfs && fio --name=job --size=256M \\
             --rw=randwrite --ioengine=mmap --verify=crc32c --directory=/mnt/daxfs'

Stopping the container unmounts. As an ordinary user: add --user daxfs.
"""


def main(arguments: list[str]) -> int:
    """Run what *arguments* ask for; the exit code of the container."""
    if not arguments or arguments[0] in ("help", "--help", "-h"):
        print(HELP, end="")
        return 0
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        return supervise(command_of(arguments))
    except OSError as error:
        print(f"{arguments[0]}: {error.strerror}: try 'help'", file=sys.stderr)
        return 127
    finally:
        end_the_rest()


def command_of(arguments: list[str]) -> list[str]:
    """The program that *arguments* mean."""
    name, *rest = arguments
    if name == "demo":
        return [sys.executable, "-m", "daxfs.bench.demo", *rest]
    if name == "serve":
        return serve_command(rest)
    if name in OWN_COMMANDS:
        return ["daxfs", *arguments]
    return arguments


def serve_command(rest: list[str]) -> list[str]:
    """A mount in the foreground, as the environment says; makes the image if it is not there."""
    image = os.environ.get("DAXFS_IMAGE", ":memory:")
    size = ["--size", os.environ.get("DAXFS_SIZE", "1G")]
    mountpoint = os.environ.get("DAXFS_MOUNT", "/mnt/daxfs")
    options = os.environ.get("DAXFS_OPTIONS", "")
    # Fails on what a killed container has left there, which the mount takes away.
    with contextlib.suppress(OSError):
        os.makedirs(mountpoint, exist_ok=True)
    if image != ":memory:" and not os.path.exists(image):
        made = subprocess.run(["daxfs", "mkfs", *size, image], check=False)
        if made.returncode != 0:
            sys.exit(made.returncode)
    command = ["daxfs", "mount", "-f", *rest]
    if options:
        command += ["-o", options]
    if image == ":memory:":
        command += size
    return [*command, image, mountpoint]


def supervise(command: list[str]) -> int:
    """Run *command* to its end, hand it the signals that come, reap what ends meanwhile."""
    asked: list[int] = []
    # Until the command is there, a signal is only noted.
    for number in FORWARDED:
        signal.signal(number, lambda number, _frame: asked.append(number))
    child = subprocess.Popen(command, process_group=0)
    if os.isatty(0):
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        os.tcsetpgrp(0, child.pid)

    def forward(number: int, _frame: object = None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)

    for number in FORWARDED:
        signal.signal(number, forward)
    for number in asked:
        forward(number)
    while True:
        pid, status = os.wait()
        if pid == child.pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def end_the_rest() -> None:
    """SIGTERM for all that is left, and time for it to end."""
    for number in FORWARDED:
        signal.signal(number, signal.SIG_IGN)
    told: set[int] = set()
    deadline = time.monotonic() + END_SECONDS
    while time.monotonic() < deadline:
        try:
            while os.waitpid(-1, os.WNOHANG)[0] != 0:
                pass
        except ChildProcessError:
            return
        # Again each time: who loses its parent now comes to this process.
        for pid in set(children()) - told:
            told.add(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        time.sleep(0.02)
    print("entrypoint: some processes do not end; they are killed", file=sys.stderr)


def children() -> list[int]:
    """The processes whose parent this one is (proc(5): stat, after the name in parentheses)."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                text = (entry / "stat").read_text(errors="replace")
            except OSError:
                continue
            if int(text.rpartition(")")[2].split()[1]) == os.getpid():
                found.append(int(entry.name))
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

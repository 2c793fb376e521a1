"""Build the image of daxfs, test it, and leave nothing behind: the body of scripts/test-container.

    containers.py present|private [pytest arguments]

``present`` uses the engine that answers to docker(1). ``private`` starts one of its own: all that
it has lies in one folder, on a tmpfs where there is memory for it; it makes no bridge and no filter
rules, and its containers use no network or the host's. If it cannot pull the base image, it makes
that from Debian's packages and imports it under the same name.

Invariant: whatever happens, a signal included, everything that was made is taken down again. All is
made in context managers. As a subreaper this process gets what the engine leaves when it dies, so
it knows by number every process to end, and ends no other.
"""

import contextlib
import ctypes
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from daxfs.bench.machine import meminfo
from daxfs.bench.workspace import exit_on_trouble, interruptible, run
from daxfs.errors import CommandError

ROOT = Path(__file__).resolve().parents[2]
BASE = "debian:bookworm-slim"
SUITE = "bookworm"
CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"
PULL_SECONDS = 60
END_SECONDS = 30
TMPFS_KB = 6 << 20
"""The engine's folder takes about 1.5 GiB; on a tmpfs only if there is four times as much."""

# What dockerd makes outside of the folders that it is told.
TRACES = (
    "/etc/docker/key.json",
    "/opt/containerd",
    "/run/containerd",
    "/run/docker",
    "/run/runc",
)
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, MNT_DETACH = 1, 36, 2
libc = ctypes.CDLL(None, use_errno=True)


def say(text: str) -> None:
    """A line about what is done."""
    print(f"test-container: {text}", flush=True)


# --- the folder, and what is mounted in it ---


@contextlib.contextmanager
def work_folder(*, in_memory: bool) -> Iterator[Path]:
    """A new folder, a shared mount of its own as root; afterwards it and all mounts in it go.

    *in_memory*: on a tmpfs, if there is enough memory.
    """
    folder = Path(tempfile.mkdtemp(prefix="daxfs-containers-"))
    try:
        if os.geteuid() == 0:
            if in_memory and meminfo()["MemAvailable"] > TMPFS_KB:
                run(["mount", "-t", "tmpfs", "-o", "mode=0711", "daxfs-containers", str(folder)])
            share = folder / "share"
            share.mkdir()
            run(["mount", "--bind", str(share), str(share)])
            run(["mount", "--make-shared", str(share)])
        yield folder
    finally:
        detach_below(folder)
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            say(f"{folder} could not be removed")


def detach_below(folder: Path) -> None:
    """Unmount *folder* and all in it, the last mount first."""
    inside = f"{folder}/"
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        place = line.split()[4]
        if f"{place}/".startswith(inside):
            libc.umount2(os.fsencode(place), MNT_DETACH)


# --- the private engine ---


@contextlib.contextmanager
def private_engine(folder: Path) -> Iterator[None]:
    """Run dockerd in *folder*; in the block ``docker`` means it."""
    traces = [path for path in map(Path, TRACES) if not path.exists()]
    cgroup = f"daxfs-containers-{os.getpid()}"
    socket = folder / "docker.sock"
    command = [
        "dockerd",
        *("-H", f"unix://{socket}"),
        *("--data-root", f"{folder}/data"),
        *("--exec-root", f"{folder}/exec"),
        *("-p", f"{folder}/docker.pid"),
        *("--bridge=none", "--iptables=false", "--ip6tables=false"),
        *("--ip-forward=false", "--ip-masq=false"),
        *("--exec-opt", "native.cgroupdriver=cgroupfs", f"--cgroup-parent=/{cgroup}"),
    ]
    environment = {
        # Debian's client, since it fits the engine: another one may want plugins of its own.
        "PATH": f"/usr/bin:/usr/sbin:/bin:/sbin:{os.environ['PATH']}",
        "DOCKER_HOST": f"unix://{socket}",
        "DOCKER_CONFIG": f"{folder}/config",
    }
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        with (folder / "dockerd.log").open("wb") as log:
            engine = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        try:
            _wait_until_ready(engine, folder / "dockerd.log")
            say("a private engine runs")
            yield
        finally:
            _end_engine(engine)
    finally:
        os.environ.clear()
        os.environ.update(before)
        _end_children()
        detach_below(folder / "data")
        detach_below(folder / "exec")
        _remove_cgroups(cgroup)
        for path in traces:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _die_with_parent() -> None:
    """In the child: end, and end the containers, also when the parent is killed."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _wait_until_ready(engine: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + END_SECONDS
    while True:
        try:
            run(["docker", "version"])
            return
        except CommandError:
            if engine.poll() is not None or time.monotonic() > deadline:
                raise CommandError(f"the engine does not start:\n{log.read_text()}") from None
            time.sleep(0.1)


def _end_engine(engine: "subprocess.Popen[bytes]") -> None:
    """End the containers, then the engine, in this order since nothing of them is to be kept."""
    with contextlib.suppress(CommandError):
        remove_containers(run(["docker", "ps", "--all", "--quiet"]).split())
    engine.terminate()
    try:
        engine.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        engine.kill()
        engine.wait()


def _end_children() -> None:
    """Kill and reap what the engine has left: it comes to this process, level by level."""
    deadline = time.monotonic() + END_SECONDS
    while time.monotonic() < deadline:
        try:
            while os.waitpid(-1, os.WNOHANG)[0] != 0:
                pass
        except ChildProcessError:
            return
        for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.02)


def _remove_cgroups(name: str) -> None:
    """Remove the engine's control groups, in all hierarchies, the inner ones first."""
    hierarchies = Path("/sys/fs/cgroup")
    for top in (hierarchies / name, *hierarchies.glob(f"*/{name}")):
        for folder, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)


# --- the base image of the private engine ---


def get_base(folder: Path) -> None:
    """Pull the base image; make it if that is impossible."""
    try:
        run(["timeout", str(PULL_SECONDS), "docker", "pull", "--quiet", BASE])
        return
    except CommandError:
        say(f"{BASE} cannot be pulled: making it from Debian's packages")
    start = time.monotonic()
    archive = folder / "base.tar"
    make_base(folder, archive)
    run(["docker", "import", "--change", 'CMD ["bash"]', str(archive), BASE])
    archive.unlink()
    say(f"base image made in {time.monotonic() - start:.0f} s")


def make_base(folder: Path, archive: Path) -> None:
    """Write a minimal Debian to *archive*, which reaches packages in the way of this machine."""
    extra = folder / "extra"
    certificates = Path("/") / CERTIFICATES
    if certificates.exists():
        (extra / CERTIFICATES).parent.mkdir(parents=True)
        shutil.copy(certificates, extra / CERTIFICATES)
    own = Path("/usr/local/share/ca-certificates")
    if own.is_dir():
        shutil.copytree(own, extra / own.relative_to("/"))
    (extra / "etc").mkdir(parents=True, exist_ok=True)
    (extra / "etc/pip.conf").write_text(pip_configuration())
    scratch = folder / "mmdebstrap"
    scratch.mkdir()
    command = [
        *("env", f"TMPDIR={scratch}"),
        *("mmdebstrap", "--quiet", "--variant=minbase"),
        "--hook-dir=/usr/share/mmdebstrap/hooks/maybe-merged-usr",
        *(f"--aptopt={option}" for option in apt_options()),
        "--dpkgopt=force-unsafe-io",
        f'--customize-hook=cp -rT {extra} "$1"',
        '--customize-hook=rm -rf "$1"/usr/share/doc/* "$1"/usr/share/man/* "$1"/usr/share/locale/*',
        *(SUITE, str(archive), *apt_sources()),
    ]
    run(command)


def apt_sources() -> list[str]:
    """The file with this machine's sources of packages, if they are those of the base image."""
    if platform.freedesktop_os_release().get("VERSION_CODENAME") != SUITE:
        return []
    files = ("/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list")
    return [name for name in files if Path(name).exists() and Path(name).stat().st_size][:1]


def apt_options() -> list[str]:
    """apt's settings for the base image: those of Debian's own image, and this machine's access."""
    options = [
        'Acquire::Languages "none"',
        'Dir::Cache::pkgcache ""',
        'Dir::Cache::srcpkgcache ""',
    ]
    for key in ("http::Proxy", "https::Proxy", "Check-Valid-Until", "Check-Date"):
        value = run(["apt-config", "dump", "--format", "%v", f"Acquire::{key}"])
        if value:
            options.append(f'Acquire::{key} "{value}"')
    return options


def pip_configuration() -> str:
    """pip's configuration for the base image: how this machine reaches its index."""
    values = {"cert": f"/{CERTIFICATES}"} if (Path("/") / CERTIFICATES).exists() else {}
    for line in run([sys.executable, "-m", "pip", "config", "list"]).splitlines():
        key, _, value = line.partition("=")
        name = key.rpartition(".")[2]
        if name in ("index-url", "trusted-host", "proxy"):
            values.setdefault(name, value.strip("'"))
    return "[global]\n" + "".join(f"{name} = {value}\n" for name, value in values.items())


# --- any engine ---


@contextlib.contextmanager
def tidy(project: str) -> Iterator[None]:
    """Remove at the end what was made with the label or the name *project*."""
    try:
        yield
    finally:
        with contextlib.suppress(CommandError):
            for label in (f"daxfs.test={project}", f"com.docker.compose.project={project}"):
                found = run(["docker", "ps", "--all", "--quiet", "--filter", f"label={label}"])
                remove_containers(found.split())
            images = run(["docker", "images", "--quiet", f"{project}*"]).split()
            if images:
                run(["docker", "rmi", "--force", *dict.fromkeys(images)])


def remove_containers(names: Sequence[str]) -> None:
    """Kill and remove containers."""
    if names:
        run(["docker", "rm", "--force", "--volumes", *names])


def compose_command() -> list[str]:
    """Compose as a plugin or as a program. Raises CommandError."""
    for command in (["docker-compose"], ["docker", "compose"]):
        with contextlib.suppress(CommandError, FileNotFoundError):
            run([*command, "version"])
            return command
    raise CommandError("this engine has no compose: install docker-compose")


def set_builder() -> None:
    """Build with BuildKit, unless the client needs a plugin for it that is not there."""
    with contextlib.suppress(CommandError):
        version = run(["docker", "version", "--format", "{{.Client.Version}}"])
        plugin = "buildx" in run(["docker", "--help"])
        os.environ["DOCKER_BUILDKIT"] = str(int(plugin or int(version.split(".")[0]) < 23))


def build(name: str, dockerfile: str, *options: str) -> float:
    """Build an image from the repository; seconds that it took."""
    start = time.monotonic()
    path = str(ROOT / dockerfile)
    run(["docker", "build", "--network=host", "--tag", name, "--file", path, *options])
    return time.monotonic() - start


def build_images(project: str) -> tuple[str, str]:
    """The image, and the one with the tests in it."""
    image, suite = f"{project}:image", f"{project}:suite"
    seconds = build(image, "docker/Dockerfile", str(ROOT))
    size = int(run(["docker", "image", "inspect", "--format", "{{.Size}}", image]))
    say(f"image built in {seconds:.0f} s: {size / 1e6:.0f} MB")
    builder = f"{project}:builder"
    build(builder, "docker/Dockerfile", "--target=builder", str(ROOT))
    names = (f"--build-arg=BUILDER={builder}", f"--build-arg=IMAGE={image}")
    build(suite, "tests/container/Dockerfile", *names, str(ROOT))
    return image, suite


def run_tests(arguments: Sequence[str], settings: dict[str, object]) -> int:
    """pytest on tests/container; its exit code. When interrupted, it gets time to tidy up."""
    command = [sys.executable, "-m", "pytest", str(ROOT / "tests/container"), *arguments]
    environment = {**os.environ, "DAXFS_CONTAINERS": json.dumps(settings)}
    tests = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        return tests.wait()
    except BaseException:
        tests.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            tests.wait(END_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(tests.pid, signal.SIGKILL)
        raise


def main(engine: str, arguments: Sequence[str]) -> int:
    """Everything; the exit code."""
    project = f"daxfs-test-{os.getpid()}"
    private = engine == "private"
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(work_folder(in_memory=private))
        if private:
            stack.enter_context(private_engine(folder))
            get_base(folder)
        stack.enter_context(tidy(project))
        set_builder()
        image, suite = build_images(project)
        settings = {
            "compose": compose_command(),
            "image": image,
            "suite": suite,
            "project": project,
            "folder": str(folder),
        }
        return run_tests(arguments, settings)


if __name__ == "__main__":
    with exit_on_trouble("test-container"), interruptible():
        code = main(sys.argv[1], sys.argv[2:])
    sys.exit(code)

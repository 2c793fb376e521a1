"""fio with checksums on the mount: what was written is what is read."""

import json
import shutil
from collections.abc import Callable

import pytest
from daxmount import DaxMount, run

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(shutil.which("fio") is None, reason="fio is not installed"),
]

MakeMount = Callable[..., DaxMount]


def _fio(mount: DaxMount, *words: str) -> list[dict]:
    argv = [
        *["fio", "--output-format=json", "--eta=never", "--name=job", f"--directory={mount.path}"],
        "--verify_state_save=0",
        *words,
    ]
    jobs = json.loads(run(argv, timeout=240).stdout)["jobs"]
    assert [job["error"] for job in jobs] == [0] * len(jobs)
    return jobs


@pytest.mark.parametrize("engine", ["psync", "mmap", "libaio"])
@pytest.mark.parametrize("pattern", ["write", "randwrite"])
def test_fio_verifies_what_it_wrote(make_mount: MakeMount, engine: str, pattern: str) -> None:
    mount = make_mount("dax=always", size="96M")
    jobs = _fio(
        mount,
        f"--ioengine={engine}",
        f"--rw={pattern}",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--size=32M",
        "--bs=4k",
        "--fallocate=none",
        *(["--iodepth=8"] if engine == "libaio" else []),
    )
    assert jobs[0]["write"]["io_bytes"] == 32 << 20
    assert jobs[0]["read"]["io_bytes"] == 32 << 20, "all of it was verified"


@pytest.mark.parametrize("engine", ["psync", "mmap"])
def test_fio_verifies_under_dax_never(make_mount: MakeMount, engine: str) -> None:
    mount = make_mount("dax=never", size="64M")
    _fio(
        mount,
        f"--ioengine={engine}",
        "--rw=randwrite",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--size=16M",
        "--bs=4k",
        "--fallocate=none",
    )


def test_fio_direct_io_with_mixed_sizes(make_mount: MakeMount) -> None:
    mount = make_mount(size="96M")
    _fio(
        mount,
        "--ioengine=libaio",
        "--direct=1",
        "--rw=randwrite",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--size=32M",
        "--bsrange=4k-256k",
        "--fallocate=none",
        "--iodepth=8",
    )


def test_two_jobs_read_and_write_one_file_through_mmap(make_mount: MakeMount) -> None:
    mount = make_mount("hole_cache=1M", size="96M")
    jobs = _fio(
        mount,
        "--ioengine=mmap",
        "--rw=randrw",
        "--filename=shared",
        "--numjobs=2",
        "--size=32M",
        "--io_size=16M",
        "--bs=4k",
        "--fallocate=none",
    )
    assert len(jobs) == 2

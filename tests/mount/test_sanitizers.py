"""The companion extension under the address and undefined behaviour sanitizers, on real mounts."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from daxmount import REPOSITORY

pytestmark = [pytest.mark.mount, pytest.mark.long]

TESTS = (
    "tests/fuse/test_lowlevel.py",
    "tests/mount/test_falloc.py",
    "tests/mount/test_evictor.py",
)
IN_TIME = "while_it_holds"
"""A test that fails where reading is too slow."""
SECONDS = 1200


def _said(*argv: str) -> str | None:
    """What a program prints; None if it cannot be run."""
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


@pytest.fixture
def library() -> str:
    """The run-time library of the address sanitizer."""
    path = _said("gcc", "-print-file-name=libasan.so")
    if path is None or not os.path.isabs(path):
        pytest.skip("gcc or its address sanitizer is not installed")
    return path


@pytest.mark.timeout(SECONDS + 20)
def test_nothing_is_found(tmp_path: Path, library: str) -> None:
    flags = _said("pkg-config", "--cflags", "--libs", "fuse3")
    if flags is None:
        pytest.skip("libfuse3-dev is not installed")
    for folder in ("daxfs", "tests"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder)
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    source = tmp_path / "daxfs" / "fuse" / "_lowlevel.c"
    target = source.with_suffix(str(sysconfig.get_config_var("EXT_SUFFIX")))
    subprocess.run(
        [
            *("gcc", "-shared", "-fPIC", "-g", "-O1", "-Wall", "-Wextra", "-Werror"),
            *("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
            f"-I{sysconfig.get_path('include')}",
            *(str(source), "-o", str(target), *flags.split()),
        ],
        check=True,
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(tmp_path),
        "LD_PRELOAD": library,
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own
        "PYTHONMALLOC": "malloc",  # so that what Python allocates is watched too
    }
    result = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("-k", f"not {IN_TIME}", *TESTS),
        ],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    said = result.stdout + result.stderr
    assert result.returncode == 0, said[-8000:]
    assert " passed" in said
    assert "Sanitizer" not in said
    assert "runtime error" not in said

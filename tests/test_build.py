"""The build of the package: what pip is told first, and what a source distribution holds."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
BACKEND = REPOSITORY / "scripts" / "lib"


def _hook(
    name: str, *arguments: str, cwd: Path, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Call a hook of the build backend as pip does, in a process of its own."""
    call = f"{name}({', '.join(map(repr, arguments))})"
    return subprocess.run(
        [sys.executable, "-c", f"import build_backend; print(build_backend.{call})"],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(BACKEND), **environment},
        check=False,
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """What the package is built from: setuptools writes beside it."""
    copy = tmp_path / "source"
    shutil.copytree(
        REPOSITORY / "daxfs", copy / "daxfs", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    (copy / "scripts" / "lib").mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE", "scripts/lib/build_backend.py"):
        shutil.copy(REPOSITORY / name, copy / name)
    return copy


@pytest.mark.parametrize("kind", ["wheel", "editable"])
@pytest.mark.parametrize("variable", ["PKG_CONFIG_LIBDIR", "PATH"])
def test_a_missing_package_is_named_in_one_line(source: Path, kind: str, variable: str) -> None:
    environment = {variable: "/nonexistent", "PKG_CONFIG_PATH": ""}
    result = _hook(f"get_requires_for_build_{kind}", cwd=source, **environment)
    assert result.returncode != 0
    assert "libfuse3-dev" in result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr


def test_a_source_distribution_can_be_built_from(source: Path, tmp_path: Path) -> None:
    result = _hook("build_sdist", str(tmp_path), cwd=source)
    assert result.returncode == 0, result.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {"pyproject.toml", "scripts/lib/build_backend.py", "daxfs/fuse/_lowlevel.c"} <= names

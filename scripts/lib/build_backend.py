"""How pip builds daxfs: as setuptools does, after a look for what it takes to build pyfuse3.

pip asks this backend before it turns to what daxfs depends on. Without the headers of libfuse 3 the
build of pyfuse3 fails later, and says no more than that there is no fuse3.pc.
"""

import subprocess
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  (the other hooks of PEP 517 and 660)

_HINT = (
    "daxfs: {missing}. Install libfuse3-dev and pkg-config (apt-get install libfuse3-dev "
    "pkg-config), elsewhere fuse3-devel or fuse3."
)


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """See PEP 517; SystemExit with one line where libfuse cannot be built against."""
    _check()
    return build_meta.get_requires_for_build_wheel(config_settings)


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    """See PEP 660; SystemExit as of a wheel."""
    _check()
    return build_meta.get_requires_for_build_editable(config_settings)


def _check() -> None:
    try:
        found = subprocess.run(["pkg-config", "--exists", "fuse3"], check=False).returncode == 0
    except FileNotFoundError:
        raise SystemExit(_HINT.format(missing="there is no pkg-config to find libfuse 3")) from None
    if not found:
        raise SystemExit(_HINT.format(missing="the headers of libfuse 3 are missing"))

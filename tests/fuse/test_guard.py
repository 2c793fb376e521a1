"""What the guard takes for the death of its daemon."""

import subprocess
import sys

from daxfs.fuse import guard

_CODE = """
import os, resource
from daxfs.fuse import guard
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
print(guard.is_dead(os.getppid()))
"""


def test_who_has_no_descriptor_to_look_takes_nobody_for_dead() -> None:
    looked = subprocess.run([sys.executable, "-c", _CODE], capture_output=True, text=True)
    assert looked.stdout == "False\n", looked.stderr


def test_a_process_that_is_gone_is_dead() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert guard.is_dead(process.pid)

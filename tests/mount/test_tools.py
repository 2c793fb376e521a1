"""The commands that look at a mount: stat, map, smaps, info."""

import json
import mmap
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from daxmount import DaxMount, background, daxfs
from syscalls import opened

pytestmark = pytest.mark.mount

MakeMount = Callable[..., DaxMount]
MIB = 1 << 20

"""Where the code of daxfs stores, flushes and fences: found in its source, and again in a running
call.

A site is one call of a method of Persist, or of Transaction, which stores through it, in
the modules that change a mounted image.
Its name says module, function and call, not the line: ``journal.undo.Journal.finish fence``.

Invariants
- Sites are found by their form alone: a new one is found without anybody naming it here.
"""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Final, NamedTuple

import daxfs

_PACKAGE: Final = Path(daxfs.__file__).parent
_PARTS: Final = ("journal", "fs", "dax")
_PERSIST: Final = ("store", "store_u64", "fill", "flush", "fence", "persist")
_TRANSACTION: Final = ("store", "store_u64", "fill", "log")


class Site(NamedTuple):
    """One call in the code."""

    name: str
    """Module, function and call, with a number if there are several: ``fs.core.Core.f fence 2``."""
    call: str
    """``store``, ``flush``, ``fence``; ``tx.store``, ``tx.log``."""
    path: str
    line: int


def _call(node: ast.Call) -> str:
    """What kind of site *node* is; "" if it is none."""
    if not isinstance(node.func, ast.Attribute):
        return ""
    method, receiver = node.func.attr, ast.unparse(node.func.value)
    if receiver.endswith("persist") and method in _PERSIST:
        return method if method in ("flush", "fence") else "store"
    if receiver.endswith("tx") and method in _TRANSACTION:
        return "tx.log" if method == "log" else "tx.store"
    return ""


def _calls(node: ast.AST, function: str) -> Iterator[tuple[str, str, int]]:
    """(function, call, line) of each site below *node*, in the order of the source."""
    for child in ast.iter_child_nodes(node):
        inner = function
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            inner = f"{function}.{child.name}" if function else child.name
        yield from _calls(child, inner)
        if isinstance(child, ast.Call) and (call := _call(child)):
            yield function, call, child.lineno


@cache
def sites() -> tuple[Site, ...]:
    """All sites of the code."""
    found = []
    for part in _PARTS:
        for path in sorted((_PACKAGE / part).glob("*.py")):
            found += _sites_of(path, f"{part}.{path.stem}")
    return tuple(found)


def _sites_of(path: Path, module: str) -> list[Site]:
    calls = sorted(_calls(ast.parse(path.read_text()), ""), key=lambda call: call[2])
    counts: dict[str, int] = {}
    found = []
    for function, call, line in calls:
        name = f"{module}.{function} {call}"
        counts[name] = counts.get(name, 0) + 1
        number = f" {counts[name]}" if counts[name] > 1 else ""
        found.append(Site(name + number, call, str(path), line))
    return found


@cache
def _places() -> dict[tuple[str, int], Site]:
    return {(site.path, site.line): site for site in sites()}


def running() -> list[Site]:
    """The sites that are being executed, the innermost first."""
    frame: FrameType | None = sys._getframe(1)
    places = _places()
    found = []
    while frame is not None:
        site = places.get((frame.f_code.co_filename, frame.f_lineno))
        if site is not None:
            found.append(site)
        frame = frame.f_back
    return found

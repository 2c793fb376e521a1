"""The import rule: each layer imports only those below it (docs/DESIGN.md)."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import daxfs

PACKAGE = Path(daxfs.__file__).parent

SERVANTS = {"errors", "units", "trace"}
BELOW_FS = {"dax", "journal", "alloc", "ondisk", "pmem"}
ALLOWED = {
    "pmem": set(),
    "ondisk": {"pmem"},
    "alloc": {"journal", "ondisk", "pmem"},
    "journal": {"ondisk", "pmem"},
    "dax": {"ondisk", "pmem"},
    "fs": BELOW_FS,
    "mkfs": BELOW_FS,
    "inspect": {"ondisk", "pmem"},
    "fsck": {"journal", "ondisk", "pmem"},
    "fuse": {"fs", "mkfs"} | BELOW_FS,
    "cli": {"fuse", "fsck", "inspect", "fs", "mkfs"} | BELOW_FS,
    "bench": {"cli", "fuse", "fsck", "inspect", "fs", "mkfs"} | BELOW_FS,
    "testing": {"cli", "fuse", "fsck", "inspect", "fs", "mkfs"} | BELOW_FS,
    "trace": {"errors", "units"},
    "errors": set(),
    "units": set(),
    "__main__": {"cli"},
    "__init__": set(),
}
"""The other parts of daxfs that each part may import, beside itself and the servants."""

SHELL_ONLY = {"pyfuse3", "trio"}


def _modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _part(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def _imports(source: str, package: list[str]) -> Iterator[tuple[int, str]]:
    """(line, full dotted name) of every import in *source*, at whatever depth it stands.

    ``from a import b`` gives ``a.b``: b may be a module. *package* resolves relative imports.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{start}.{alias.name}"


def _broken(path: Path) -> Iterator[str]:
    part = _part(path)
    package = ["daxfs", *path.relative_to(PACKAGE).parent.parts]
    allowed = ALLOWED[part] | {part, "__version__"}
    if part not in ("errors", "units", "__init__"):
        allowed = allowed | SERVANTS
    for line, name in _imports(path.read_text(), package):
        top, _, rest = name.partition(".")
        if top in SHELL_ONLY and part != "fuse":
            yield f"{path.relative_to(PACKAGE)}:{line} imports {top}: only fuse may"
        if top == "daxfs" and rest and (target := rest.partition(".")[0]) not in allowed:
            yield f"{path.relative_to(PACKAGE)}:{line} imports {target}: not below {part}"


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_only_layers_below_it(path: Path) -> None:
    assert _part(path) in ALLOWED, "a new part of daxfs needs its place among the layers"
    assert list(_broken(path)) == []


def test_the_rule_sees_every_form_of_import() -> None:
    source = (
        "import trio.lowlevel\n"
        "from daxfs import fs, units\n"
        "def late():\n"
        "    from ..journal.undo import Journal\n"
        "    from . import entry\n"
    )
    assert [name for _, name in _imports(source, ["daxfs", "dax"])] == [
        "trio.lowlevel",
        "daxfs.fs",
        "daxfs.units",
        "daxfs.journal.undo.Journal",
        "daxfs.dax.entry",
    ]


def test_no_layer_may_reach_itself_through_others() -> None:
    """The table has no cycles, so "below" means something."""
    order: list[str] = []
    waiting = dict(ALLOWED)
    while waiting:
        ready = [part for part, needs in waiting.items() if not needs & set(waiting)]
        assert ready, f"a cycle among {sorted(waiting)}"
        order += ready
        for part in ready:
            del waiting[part]
    assert order.index("pmem") < order.index("ondisk") < order.index("dax") < order.index("fs")

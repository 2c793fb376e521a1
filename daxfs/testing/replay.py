"""One crash state again, told to a person: the log, the stores in question, what failed."""

from collections.abc import Iterator

from daxfs.testing.recorder import Begin, Discard, End, Event, Fence, Flush, Part, Store
from daxfs.testing.stage import Ground
from daxfs.testing.stateid import StateId
from daxfs.testing.states import LINE
from daxfs.testing.trees import TREES
from daxfs.testing.usage import place_name, place_names
from daxfs.testing.walker import Replay, Walker
from daxfs.testing.workloads import Workload, workload


def replay(text: str) -> tuple[list[str], str | None]:
    """Judge the state with the id *text*: lines about it, and the oracle that fails, or None.

    ValueError if there is no such state.
    """
    name = StateId.parse(text)
    what: Workload = workload(name.workload)
    ground = Ground.make(what.tree, TREES[what.tree], what.image_size)
    result = Walker({what.tree: ground}).again(what, name.cuts)
    return list(_lines(result, ground)), result.fault


def _lines(result: Replay, ground: Ground) -> Iterator[str]:
    names = place_names(result.durable.reshape(-1), ground.sb) | place_names(ground.data, ground.sb)
    for number, event in enumerate(result.events):
        if number == result.point.event:
            yield "---- crash ----"
        yield f"{number:5} {_event(event, ground, names)}"
    if result.point.event == len(result.events):
        yield "---- crash ----"
    if result.point.lines:
        yield "of what was not certain at the crash there is:"
    for line, contents, kept in zip(
        result.point.lines, result.point.contents, result.choice, strict=True
    ):
        where = place_name(ground.sb, line * LINE, names)
        yield f"  line {line:x} ({where}): {kept} of {len(contents) - 1} stores"


def _event(event: Event, ground: Ground, names: dict[int, str]) -> str:
    if isinstance(event, Begin):
        return f"{event.name} begins"
    if isinstance(event, End):
        return "it has returned"
    if isinstance(event, Part):
        return "a part of it is done"
    if isinstance(event, Fence):
        return "  fence"
    where = place_name(ground.sb, event.offset, names)
    if isinstance(event, Flush):
        return f"  flush    {event.offset:#x}+{event.length} ({where})"
    what = "discard" if isinstance(event, Discard) else "store"
    assert isinstance(event, Store | Discard)
    return f"  {what:8} {event.offset:#x}+{len(event.new)} ({where})"

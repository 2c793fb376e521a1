"""Mutants: daxfs with one store, flush or fence switched off, moved or swapped.

A tester that finds nothing may be blind. Each mutant is a bug of crash consistency made on purpose,
one or two for each site of ``sites``; the explorer must find each.

    flush   dropped     the lines are never flushed
            late        they are flushed behind the word that makes them count
    fence   dropped     there is none
            early       it comes before the last store that it should confirm
    store   late        it comes, with its flush, behind the word that makes it count
    tx      unlogged    the range is changed without an entry in the journal
            late        as for a store

The word that makes a store count is the finished number of the transaction (JOURNAL_SEQ); for an
entry of the journal it is the store that the entry can undo, and for what is stored outside of a
transaction, or by the journal to finish one, the first store behind the next fence.

The other mutants (``LOGIC``) break a rule of the journal or of mount that is no single call.

An order of stores is an order on the medium alone: the processor that runs the program sees its own
stores at once. So a mutant of an order changes nothing in the image that the program works on, only
what the observer of Persist, and with it the recorder, is told.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Final, NamedTuple
from unittest import mock

from daxfs.alloc.blocks import BlockAllocator
from daxfs.fs import super as super_module
from daxfs.fs.recovery import Usage, find_usage
from daxfs.fs.super import FileSystem
from daxfs.journal import undo
from daxfs.journal.undo import Journal, Transaction
from daxfs.ondisk.layout import JOURNAL_SEQ_OFFSET, Superblock
from daxfs.pmem.image import Image
from daxfs.pmem.persist import Domain, Observer, Persist
from daxfs.testing.recorder import Begin, End, Fence, Part, Recorder, Store
from daxfs.testing.sites import Site, running, sites

KINDS: Final = {
    "flush": ("dropped", "late"),
    "fence": ("dropped", "early"),
    "store": ("late",),
    "tx.store": ("unlogged", "late"),
    "tx.log": ("unlogged",),
}
"""The kinds of mutants by the call of a site."""


_BEYOND_COMMIT: Final = ("Transaction._append", "Journal.", "_store_clean", "report_corruption")
"""Sites whose stores do not wait for the number of a transaction."""


class Mutant(NamedTuple):
    """One bug."""

    name: str
    kind: str
    site: Site | None = None

    def applied(self) -> AbstractContextManager[object]:
        """Inside of this context the code of daxfs has the bug."""
        if self.kind == "unlogged":
            return _unlogged(self)
        if self.site is None:
            return LOGIC[self.name]()
        return nullcontext()

    def persist(self, image: Image, domain: Domain) -> Persist:
        """A Persist whose observer is told the order that the mutant has."""
        if not self._is_order:
            return Persist(image, domain)
        persist = MutantPersist(image, domain)
        persist.mutant = self
        return persist

    @contextmanager
    def everywhere(self) -> Iterator[None]:
        """Inside of this context every Persist and all code has the bug: for tests of pytest."""
        with self.applied(), ExitStack() as stack:
            if self._is_order:
                stack.enter_context(mock.patch.object(Persist, "mutant", self, create=True))
                stack.enter_context(mock.patch.object(Persist, "observer", MutantPersist.observer))
            yield

    @property
    def _is_order(self) -> bool:
        """Whether it is one of an order; else of a rule."""
        return self.site is not None and self.kind != "unlogged"


def mutants() -> list[Mutant]:
    """All mutants of the present code."""
    found = [
        Mutant(f"{site.name}: {kind}", kind, site) for site in sites() for kind in KINDS[site.call]
    ]
    return found + [Mutant(name, "logic") for name in LOGIC]


# --- mutants of an order -------------------------------------------------------------------------


class MutantPersist(Persist):
    """A Persist that tells its observer of another order."""

    mutant: Mutant

    @property
    def observer(self) -> Observer | None:
        """Who sees each step as the mutant has it, or None."""
        return self._observer

    @observer.setter
    def observer(self, observer: Observer | None) -> None:
        self._observer = observer and _Disorder(observer, self.image, self.mutant)
        self._quiet = self._is_free and observer is None


class _Disorder:
    """An Observer that tells another one of the order of a mutant."""

    def __init__(self, observer: Observer, image: Image, mutant: Mutant) -> None:
        assert mutant.site is not None
        self._observer = observer
        self._mem = image.mem
        self._site = mutant.site
        self._kind = mutant.kind
        self._waits_for_commit = not any(name in self._site.name for name in _BEYOND_COMMIT)
        self._held: list[tuple[int, bytes, bytes]] = []
        """Stores that are late: offset, old bytes, new ones."""
        self._flushes: list[tuple[int, int]] = []
        """Flushes that are late."""
        self._fenced = False
        """Whether a fence was passed since then."""

    def _hit(self) -> bool:
        found = running()
        if self._site.call == "tx.store":
            return self._site in found and not any("_append" in site.name for site in found)
        return bool(found) and found[0] == self._site

    def _hides(self, offset: int, length: int) -> bool:
        """Whether a store that is late overlaps this range."""
        end = offset + length
        return any(low < end and offset < low + len(new) for low, _, new in self._held)

    def on_store(self, offset: int, data: bytes) -> None:
        """See Observer."""
        if self._hides(offset, len(data)):
            self._release()
        if self._kind == "late" and self._site.call != "flush" and self._hit():
            if self._fenced and not self._waits_for_commit:
                self._release()
            self._held.append((offset, bytes(self._mem[offset : offset + len(data)]), data))
            return
        self._observer.on_store(offset, data)
        counts = offset == JOURNAL_SEQ_OFFSET or not self._waits_for_commit
        if self._fenced and counts:
            self._release()

    def on_flush(self, offset: int, length: int) -> None:
        """See Observer."""
        if self._site.call == "flush" and self._hit():
            if self._kind == "late":
                self._flushes.append((offset, length))
        elif not self._hides(offset, length):
            self._observer.on_flush(offset, length)

    def on_fence(self) -> None:
        """See Observer."""
        if self._site.call != "fence" or not self._hit():
            self._observer.on_fence()
        elif self._kind == "early":
            self._fence_earlier()
        self._fenced = bool(self._held or self._flushes)

    def _fence_earlier(self) -> None:
        """Put a fence before the last store of the running operation, if a recorder has it."""
        if not isinstance(self._observer, Recorder):
            return
        events = self._observer.events
        place = len(events)
        while place and not isinstance(events[place - 1], Fence | Begin | End | Part):
            place -= 1
            if isinstance(events[place], Store):
                break
        events.insert(place, Fence())

    def _release(self) -> None:
        """Tell of what is late, stores with their flushes."""
        for offset, old, new in self._held:
            place = slice(offset, offset + len(new))
            present = bytes(self._mem[place])
            self._mem[place] = old
            self._observer.on_store(offset, new)
            self._mem[place] = present
            self._observer.on_flush(offset, len(new))
        for offset, length in self._flushes:
            self._observer.on_flush(offset, length)
        self._held.clear()
        self._flushes.clear()
        self._fenced = False


# --- mutants of a rule ---------------------------------------------------------------------------


@contextmanager
def _unlogged(mutant: Mutant) -> Iterator[None]:
    append = Transaction._append

    def skipping(self: Transaction, offset: int, length: int) -> bool:
        return mutant.site not in running() and append(self, offset, length)

    with mock.patch.object(Transaction, "_append", skipping):
        yield


def _unchecked() -> AbstractContextManager[object]:
    return mock.patch.object(undo, "entry_checksum", return_value=0)


def _any_number() -> AbstractContextManager[object]:
    checksum = undo.entry_checksum

    def without_number(seed: int, seq: int, offset: int, length: int, padded: bytes) -> int:
        return checksum(seed, 0, offset, length, padded)

    return mock.patch.object(undo, "entry_checksum", without_number)


def _oldest_first() -> AbstractContextManager[object]:
    undo_entries = Journal.undo

    def oldest_first(self: Journal, entries: list[undo.UndoEntry], seq: int) -> None:
        undo_entries(self, entries[::-1], seq)

    return mock.patch.object(Journal, "undo", oldest_first)


def _unfinished_commit() -> AbstractContextManager[object]:
    def commit(self: Transaction) -> None:
        self._persist.fence()
        self._journal.open = None
        for call in self._commit_calls:
            call()

    return mock.patch.object(Transaction, "_commit", commit)


def _no_undo_at_abort() -> AbstractContextManager[object]:
    def abort(self: Transaction) -> None:
        self._journal.open = None
        for call in reversed(self._abort_calls):
            call()

    return mock.patch.object(Transaction, "abort", abort)


def _no_recovery() -> AbstractContextManager[object]:
    return mock.patch.object(Journal, "recover", return_value=0)


def _bitmap_believed() -> AbstractContextManager[object]:

    def believing(image: Image, persist: Persist, sb: Superblock, *, clean: bool) -> Usage:
        return find_usage(image, persist, sb, clean=True)

    return mock.patch.object(super_module, "find_usage", believing)


def _orphans_kept() -> AbstractContextManager[object]:
    return mock.patch.object(FileSystem, "_free_orphans")


def _freed_at_once() -> AbstractContextManager[object]:
    def free(self: BlockAllocator, tx: object, start: int, count: int) -> None:
        self._free_now(start, count)

    return mock.patch.object(BlockAllocator, "free_blocks", free)


LOGIC: Final[dict[str, Callable[[], AbstractContextManager[object]]]] = {
    "entries are not checked": _unchecked,
    "the checksum of an entry leaves out its number": _any_number,
    "the oldest entry is undone first": _oldest_first,
    "a commit does not finish its number": _unfinished_commit,
    "an abort undoes nothing": _no_undo_at_abort,
    "a mount undoes nothing": _no_recovery,
    "a mount believes the bitmap of a dirty image": _bitmap_believed,
    "a mount leaves orphans": _orphans_kept,
    "freed blocks are used again before the commit": _freed_at_once,
}
"""What breaks a rule, by name.

An undo that does not finish its number is no bug, and therefore not here: until the next commit,
which finishes that number, each of its entries says what stands in its range anyway.
"""

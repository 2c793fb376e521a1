"""One mount, from the image to the clean super block.

Kernel counterpart: ext4_fill_super(), deactivate_super(), and the life of a FUSE connection.

The order: lock the image, mount the filesystem, attach to the mountpoint, serve; then the evictor's
thread, the session and the mountpoint go, and at last the filesystem is unmounted (state CLEAN) and
the image released. Whatever fails, the steps that were taken are undone in reverse.

It ends by umount(8), fusermount3 -u, an abort in /sys/fs/fuse/connections, or by SIGINT, SIGTERM or
SIGHUP, which unmount; lazily, after the data was written, where a program still uses the mount. A
second signal ends it without waiting.
"""

import contextlib
import errno
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Final

import trio

from daxfs.errors import CommandError, MediaError, MountExit
from daxfs.fs.super import FileSystem
from daxfs.fuse import lowlevel, mounting
from daxfs.fuse.control_server import Answers, Server
from daxfs.fuse.evictor import Evictor
from daxfs.fuse.guard import Guard
from daxfs.fuse.lowlevel import pyfuse3
from daxfs.fuse.mountinfo import FSTYPE, MountEntry, mounts, same_filesystem
from daxfs.fuse.operations import Operations
from daxfs.fuse.options import MountOptions
from daxfs.fuse.poll import Poller
from daxfs.fuse.requests import Requests
from daxfs.mkfs.format import format_image
from daxfs.pmem.image import ANONYMOUS_PATH, Image
from daxfs.pmem.persist import Persist, domain_for

log = logging.getLogger(__name__)

TASKS_MAX = 64
"""Requests that may wait at a time, for a fence, an entry or the evictor."""

HOUSEKEEPING_SECONDS = 0.5
"""How often blocks that were freed are given back to the host."""

END_SECONDS = 5.0
"""How long the end may take: the sync of a busy mount, the event loop's end after an unmount."""

LOCK_SECONDS: Final = 5.0
"""How long a mount waits for an image of which nobody says that it is about to be free."""
LOCK_POLL_SECONDS: Final = 0.02

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_GONE = (errno.ENODEV, errno.ENOTCONN, errno.ECONNABORTED)


def run(
    image_spec: str,
    mountpoint: str,
    options: MountOptions,
    *,
    size: int | None,
    ready: Callable[[], None],
) -> None:
    """Mount the image *image_spec* on *mountpoint* and serve it until it is unmounted.

    *image_spec*: a path, or ``:memory:`` for an image of *size* bytes that lives with the mount.
    It is the source that mount(8) shows, exactly as it is.
    *ready* is called, on the event loop, when the mount is usable. Must run in the main thread.
    Raises CommandError with one line; then nothing is left behind.
    """
    path = _absolute(image_spec)
    target = mounting.check_mountpoint(mountpoint)
    mounting.check_fuse(options)
    with _image(path, options, size) as image:
        persist = Persist(image, domain_for(image, options.persist))
        session: Session | None = None
        lowlevel.guard(image.mem)

        def on_change(ino: int, start: int, end: int, kind: str) -> None:
            if session is not None:
                session.evictor.changed(ino, start, end)

        try:
            fs = FileSystem.mount(
                image,
                persist,
                read_only=options.read_only,
                dax=options.dax,
                atime=options.atime,
                enable_acl=options.enable_acl,
                diratime=options.diratime,
                discard=options.discard,
                remount_ro=options.errors == "remount-ro",
                on_change=on_change,
            )
        except OSError as error:
            raise mounting.failure(_image_line(path, error)) from error
        fs.page_is_lost = lowlevel.has_lost_page
        try:
            session = Session(fs, options, image_spec, target)
            session.serve(ready)
        finally:
            image.mark_ending()
            _unmount(fs, path)
            persist.close()
            lowlevel.guard(None)


def _absolute(image_spec: str) -> str:
    """*image_spec* so that it means the same in any working directory.

    Nothing else is changed: a ``..`` behind a symbolic link is not what it looks like.
    """
    if image_spec == ANONYMOUS_PATH or os.path.isabs(image_spec):
        return image_spec
    return os.path.join(os.getcwd(), image_spec)


@contextlib.contextmanager
def _image(spec: str, options: MountOptions, size: int | None) -> Iterator[Image]:
    """The locked image that *spec* and *size* mean; a new one in memory is formatted."""
    if spec == ANONYMOUS_PATH:
        if size is None:
            raise CommandError(
                f"{ANONYMOUS_PATH} needs a size: daxfs mount --size 1G", MountExit.USAGE
            )
    elif size is not None:
        raise CommandError(
            f"--size is for {ANONYMOUS_PATH}: an image file has its own size", MountExit.USAGE
        )
    try:
        if size is None:
            image = Image.open(spec, writable=not options.read_only)
        else:
            image = Image.anonymous(size)
    except OSError as error:
        raise mounting.failure(_image_line(spec, error)) from error
    with image:
        try:
            _lock(image)
            if size is not None:
                format_image(image, root_uid=os.geteuid(), root_gid=os.getegid())
        except ValueError as error:
            raise mounting.failure(str(error)) from error
        except OSError as error:
            raise mounting.failure(_image_line(spec, error)) from error
        yield image


def _lock(image: Image) -> None:
    """Take the lock of *image*. EBUSY: it is mounted, or in use for some seconds already.

    umount(2) returns before the daemon has stored everything and ended. On a slow disk that takes
    as long as umount(2) takes with other filesystems, so a daemon that is at it is waited for.
    """
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            return image.lock()
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            if image.is_ending():
                deadline = time.monotonic() + LOCK_SECONDS
            elif time.monotonic() > deadline or _is_mounted(image):
                raise
        time.sleep(LOCK_POLL_SECONDS)


def _is_mounted(image: Image) -> bool:
    """Whether a mount that is seen here, and lives, has the file of *image* as its source."""
    for entry in mounts():
        if entry.fstype == FSTYPE and os.path.isabs(entry.source):
            with contextlib.suppress(OSError):
                same = os.path.samestat(os.stat(entry.source), os.fstat(image.fd))
                if same and not mounting.is_dead(entry):
                    return True
    return False


def _image_line(spec: str, error: OSError) -> str:
    text = error.strerror or str(error)
    if error.errno == errno.EUCLEAN:
        text += ": 'daxfs fsck' may mend it, 'daxfs mkfs' makes a new one"
    elif isinstance(error, MediaError):
        text += ": 'daxfs fsck' may mend it, 'daxfs badblocks list' shows the bad blocks"
    elif error.errno == errno.EACCES:
        text += ": run as its owner, or as root"
    return text if spec in text else f"{spec}: {text}"


def _unmount(fs: FileSystem, image_spec: str) -> None:
    try:
        fs.unmount()
    except OSError as error:
        raise mounting.failure(f"{image_spec}: the unmount is not clean: {error}") from error


class Session:
    """A mounted filesystem on its mountpoint."""

    def __init__(
        self, fs: FileSystem, options: MountOptions, image_spec: str, mountpoint: str
    ) -> None:
        self.fs = fs
        self.options = options
        self.evictor = Evictor(lowlevel.invalidate, options.hole_cache, options.readahead)
        self._image_spec = image_spec
        self._mountpoint = mountpoint
        self._poller = Poller(options.poll)
        self._ended = trio.Event()
        self._abort: int | None = None
        """The file that ends the connection, opened as long as it is certain whose it is."""
        self._patience = trio.CancelScope()
        """How long the end waits for programs and their data: until a second signal."""

    def serve(self, ready: Callable[[], None]) -> None:
        """Attach, serve, detach. Raises CommandError."""
        with Server() as server:
            operations = Operations(self.fs, self.options, self.evictor, self._poller, server.path)
            requests = Requests(operations)
            lowlevel.configure(
                self.options.readahead,
                requests.handle,
                cache_symlinks=self.options.atime != "strictatime",
            )
            # From here to ``_signals``: none ends the process and leaves a dead mount behind.
            signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            entry = mounting.attach(operations, self._image_spec, self._mountpoint, self.options)
            guard: Guard | None = None
            try:
                self._abort = mounting.open_abort(entry)
                guard = Guard(entry.device, entry.mountpoint)
                self.fs.trace.dev = (entry.major, entry.minor)
                self.evictor.takes_ranges = lowlevel.takes_ranges()
                missing = lowlevel.missing()
                if missing is not None:
                    log.warning("%s", missing)
                answers = Answers(
                    self.fs,
                    self.evictor,
                    self.options,
                    self._mountpoint,
                    operations.pages.take_back,
                )
                trio.run(self._main, entry, operations, requests, server, answers, ready)
            except* OSError as group:
                if not all(error.errno in _GONE for error in _leaves(group)):
                    raise
            finally:
                self._leave(entry)
                if guard is not None:
                    guard.end()
                if self._abort is not None:
                    os.close(self._abort)

    async def _main(
        self,
        entry: MountEntry,
        operations: Operations,
        requests: Requests,
        server: Server,
        answers: Answers,
        ready: Callable[[], None],
    ) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.evictor.run)
            nursery.start_soon(server.serve, answers)
            nursery.start_soon(self._housekeeping)
            nursery.start_soon(self._started, entry, operations, ready)
            await nursery.start(self._signals, entry, operations)
            await nursery.start(requests.run)
            try:
                with self._poller.installed():
                    await pyfuse3.main(1, TASKS_MAX)
            finally:
                self._end_connection(entry)
                self._ended.set()
                nursery.cancel_scope.cancel()

    async def _started(
        self, entry: MountEntry, operations: Operations, ready: Callable[[], None]
    ) -> None:
        await operations.started.wait()
        # The kernel takes over what INIT has agreed on when it gets the answer, which is now sent.
        mounting.set_readahead(entry.device, self.options.readahead)
        # The kernel takes root for the owner of the mount's root until it has asked once, which
        # chmod(2) and utimensat(2) do not make it do.
        with contextlib.suppress(OSError):
            await trio.to_thread.run_sync(os.stat, entry.mountpoint, abandon_on_cancel=True)
        ready()

    async def _housekeeping(self) -> None:
        while True:
            await trio.sleep(HOUSEKEEPING_SECONDS)
            self.fs.blocks.flush_discards()

    # --- the end ----------------------------------------------------------------------------------

    async def _signals(
        self,
        entry: MountEntry,
        operations: Operations,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        for each in _SIGNALS:
            # What trio puts back. To ignore the signal would drop one that has come already.
            signal.signal(each, lambda number, frame: None)
        try:
            with trio.open_signal_receiver(*_SIGNALS) as signals:
                task_status.started()
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
                async with trio.open_nursery() as nursery:
                    asked = False
                    async for number in signals:
                        if asked:
                            log.warning("second signal: ending without waiting")
                            self._patience.cancel()
                        else:
                            log.info("%s: unmounting", signal.Signals(number).name)
                            nursery.start_soon(self._unmount_by_signal, entry, operations)
                        asked = True
        finally:
            # From here to a clean image nothing waits, and a signal must not end the process.
            for each in _SIGNALS:
                signal.signal(each, signal.SIG_IGN)

    async def _unmount_by_signal(self, entry: MountEntry, operations: Operations) -> None:
        """Unmount while the event loop goes on to serve what the kernel still has to write."""
        with self._patience:
            await self._unmount_everywhere(entry)
        with trio.move_on_after(END_SECONDS):
            await self.evictor.close()
            await operations.pages.close()
        pyfuse3.terminate()

    async def _unmount_everywhere(self, entry: MountEntry) -> None:
        """Unmount all places where it is mounted, up to one that is in use, which is detached.

        What waits for an answer of the event loop is left to itself when this is cancelled: the
        loop ends then, and the connection with it.
        """
        await self.evictor.close()
        for place in reversed(same_filesystem(entry)):
            try:
                await trio.to_thread.run_sync(_detach, place, False, abandon_on_cancel=True)
            except OSError as error:
                if error.errno == errno.EBUSY:
                    log.info("%s is in use: detaching it", place.mountpoint)
                else:
                    log.warning("unmounting %s: %s", place.mountpoint, error)
                await self._detach_used(place)
                return
        # Another mount namespace may still hold it.
        with trio.move_on_after(END_SECONDS):
            await self._ended.wait()

    async def _detach_used(self, place: MountEntry) -> None:
        """Have the kernel write what programs have stored, then detach *place* lazily."""
        is_synced = False
        try:
            sync = await trio.lowlevel.open_process(["sync", "-f", place.mountpoint])
            await sync.wait()
            is_synced = True
        except OSError as error:
            log.warning("ending when the programs do that use it: sync cannot be run: %s", error)
        with contextlib.suppress(OSError):
            await trio.to_thread.run_sync(_detach, place, True, abandon_on_cancel=True)
        if not is_synced:
            await self._ended.wait()

    def _end_connection(self, entry: MountEntry) -> None:
        """Nobody answers any more: whoever waits for an answer must not."""
        if self._abort is None:
            mounting.abort(entry)
            return
        with contextlib.suppress(OSError):
            os.write(self._abort, b"1")

    def _leave(self, entry: MountEntry) -> None:
        """After the event loop: leave neither a mount nor a session.

        It is mounted still where the connection was aborted or an error has ended the loop. A mount
        that lives is another one, which has got the number and the place of this one.
        """
        self._end_connection(entry)
        for place in reversed(same_filesystem(entry)):
            if self._abort is not None and not mounting.is_dead(place):
                continue
            try:
                mounting.detach(place, lazy=True)
            except OSError as error:
                log.warning("%s stays mounted: %s", place.mountpoint, error)
        if self.evictor.join(END_SECONDS):
            pyfuse3.close(unmount=False)
        else:
            log.warning("the evictor's thread does not end; the session ends with the process")


def _detach(place: MountEntry, lazy: bool) -> None:
    mounting.detach(place, lazy=lazy)


def _leaves(group: BaseExceptionGroup[OSError]) -> Iterator[OSError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error

"""The companion extension, as far as it shows without a mount."""

import datetime
import errno
import sys

import pytest

from daxfs.fuse import lowlevel


@pytest.fixture(autouse=True)
def _needs_extension() -> None:
    if lowlevel._extension is None:
        pytest.skip("the extension was not built")


def test_without_a_session_there_is_an_error_and_no_crash() -> None:
    assert lowlevel._extension.invalidate([(1, 0, 4096)]) == (0, errno.ENOTCONN)
    assert lowlevel._extension.invalidate([]) == (0, 0)
    assert not lowlevel._extension.has_session()
    assert lowlevel.missing() is not None


@pytest.mark.parametrize("run", [(1, 0, 0), (1, -1, 4096), (1, 4096, 0)])
def test_runs_that_mean_something_else_to_the_kernel_are_refused(run: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="start < end"):
        lowlevel._extension.invalidate([(1, 0, 4096), run])


@pytest.mark.parametrize("runs", [((1, 0, 4096),), [[1, 0, 4096]], [(1, 0)], [("1", 0, 4096)]])
def test_anything_but_a_list_of_runs_is_refused(runs: object) -> None:
    with pytest.raises(TypeError):
        lowlevel._extension.invalidate(runs)


class _Changing:
    """A number that empties the list it is in."""

    def __init__(self, runs: list[object]) -> None:
        self._runs = runs

    def __index__(self) -> int:
        self._runs.clear()
        return 1


def test_a_list_may_change_while_it_is_read() -> None:
    runs: list[object] = []
    runs.extend([(1, _Changing(runs), 4096), (1, 0, 4096)])
    assert lowlevel._extension.invalidate(runs) == (0, errno.ENOTCONN)
    assert runs == []


@pytest.mark.parametrize("reply", ["reply_err", "reply_lseek", "reply_write", "reply_ioctl"])
def test_only_a_request_is_answered(reply: str) -> None:
    result = b"" if reply == "reply_ioctl" else 0
    for request in (None, 1, object(), datetime.datetime_CAPI):
        with pytest.raises(ValueError, match="PyCapsule_GetPointer"):
            getattr(lowlevel._extension, reply)(request, result)


def test_a_handler_must_be_callable() -> None:
    with pytest.raises(TypeError, match="callable"):
        lowlevel._extension.configure(4096, False, 1)
    lowlevel._extension.configure(4096, False, None)
    assert not lowlevel._extension.has_operations()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ModuleNotFoundError(), "was not built"),
        (ImportError("undefined symbol: f"), "cannot be loaded (undefined symbol: f)"),
    ],
)
def test_why_it_is_not_there(
    monkeypatch: pytest.MonkeyPatch, error: ImportError, said: str
) -> None:
    def fail(name: str) -> None:
        raise error

    monkeypatch.delitem(sys.modules, "pyfuse3")
    monkeypatch.setattr("importlib.import_module", fail)
    module, reason = lowlevel._load()
    assert module is None
    assert reason.endswith(said)
    assert "\n" not in reason

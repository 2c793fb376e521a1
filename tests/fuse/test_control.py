"""The control protocol: whatever a peer sends gets one line, and harms nobody."""

import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import trio
from daxmount import environment

from daxfs.errors import CommandError
from daxfs.fuse import control, control_server
from daxfs.fuse.control import Client, locate
from daxfs.fuse.control_server import REQUEST_MAX, Server, answer_line, runtime_directory


class Echo:
    """Answers that say what was asked."""

    def answer(self, request: dict[str, object]) -> dict[str, object]:
        return {"asked": request}

    async def settle(self) -> None: ...


def _talk(data: bytes, *, shut: bool = True) -> bytes:
    """What a server sends back for *data* until it closes the connection."""

    async def main() -> bytes:
        with Server() as server, trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.serve, Echo())  # type: ignore[arg-type]
                stream = await trio.open_unix_socket(server.path)
                received = b""
                async with stream:
                    await stream.send_all(data)
                    if shut:
                        await stream.send_eof()
                    async for chunk in stream:
                        received += chunk
                nursery.cancel_scope.cancel()
        return received

    return trio.run(main)


def test_each_line_gets_an_answer_in_order() -> None:
    received = _talk(b'{"op": "a"}\n{"op": "b"}\n')
    assert [json.loads(line) for line in received.splitlines()] == [
        {"asked": {"op": "a"}},
        {"asked": {"op": "b"}},
    ]


@pytest.mark.parametrize(
    "line", [b"", b"{", b"\xff\xfe", b"[1]", b"null", b"7", b"[" * 60000, b'{"op": 1' + b"0" * 5000]
)
def test_line_that_is_no_request_gets_an_error(line: bytes) -> None:
    answer = json.loads(answer_line(line, Echo().answer))
    assert set(answer) == {"error"}


def test_bad_line_leaves_the_connection_usable() -> None:
    received = _talk(b'nonsense\n{"op": "a"}\n').splitlines()
    assert "error" in json.loads(received[0])
    assert json.loads(received[1]) == {"asked": {"op": "a"}}


def test_endless_line_is_cut_off() -> None:
    received = _talk(b"x" * (REQUEST_MAX + 1), shut=False)
    assert json.loads(received) == {"error": "the request is too long"}


def test_line_without_end_gets_no_answer() -> None:
    assert _talk(b'{"op": "a"}') == b""


def test_other_users_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_server, "_peer_uid", lambda stream: os.geteuid() + 12345)
    assert json.loads(_talk(b'{"op": "a"}\n')) == {"error": "permission denied"}


def test_socket_is_private_and_removed_at_the_end() -> None:
    with Server() as server:
        status = os.stat(server.path)
        assert stat.S_ISSOCK(status.st_mode)
        assert stat.S_IMODE(status.st_mode) == 0o600
        assert stat.S_IMODE(os.stat(os.path.dirname(server.path)).st_mode) == 0o700
        place = server.path
    assert not os.path.exists(place)


def test_sockets_of_dead_daemons_are_removed_and_those_of_others_stay() -> None:
    folder = runtime_directory()
    mine, dead = (os.path.join(folder, f"{name}.sock") for name in (os.getpid(), "test-dead"))
    live = os.path.join(folder, "test-live.sock")
    for path in (mine, dead):
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(path)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(live)
        other.listen()
        with Server() as server:
            assert server.path == mine
            assert not os.path.exists(dead)
            assert os.path.exists(live)
    os.unlink(live)


def test_runtime_directory_of_somebody_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In /tmp anyone may have made it, to listen in."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "daxfs").symlink_to("/")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(CommandError, match="not a directory of this user"):
        runtime_directory()


def test_locate_says_so_where_there_is_no_daxfs(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="is not on a daxfs"):
        locate(str(tmp_path))
    with pytest.raises(CommandError, match="No such file"):
        locate(str(tmp_path / "missing"))


def test_socket_that_does_not_listen_yet_is_not_taken_for_a_dead_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another daemon starts and clears up between bind(2) and listen(2) of this one."""
    script = "from daxfs.fuse.control_server import Server\nwith Server(): pass"
    others = []
    chmod = os.chmod

    def late_chmod(path: str, mode: int) -> None:
        chmod(path, mode)
        others.append(subprocess.Popen([sys.executable, "-c", script], env=environment()))
        time.sleep(1)

    monkeypatch.setattr(os, "chmod", late_chmod)
    with Server() as server:
        monkeypatch.undo()
        assert others[0].wait(60) == 0
        assert os.path.exists(server.path)


@pytest.mark.parametrize("said", [b"", b'{"blo', b'{"blocks": {}}'])
def test_daemon_that_dies_while_it_answers_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    place = str(tmp_path / "socket")
    monkeypatch.setattr(control, "locate", lambda path: place)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(place)
        listener.listen()
        with Client("/mnt") as client:
            peer, _ = listener.accept()

            def die() -> None:
                with peer:
                    peer.recv(100)
                    peer.sendall(said)

            daemon = threading.Thread(target=die)
            daemon.start()
            with pytest.raises(CommandError, match="does not answer") as raised:
                client.request("stat")
            daemon.join()
    assert "\n" not in str(raised.value)

"""The socket of a daemon among those of others, and what it costs that somebody asks there."""

from __future__ import annotations

import os
import socket

import pytest
import trio

from zfsfs.fs import door
from zfsfs.fs.natives import Grant
from zfsfs.handover import Native
from zfsfs.native import wire


def test_daemons_that_start_at_the_same_time_leave_each_other_their_sockets(tmp_path, monkeypatch):
    monkeypatch.setattr(door.wire, "folder", lambda: str(tmp_path))
    chmod, others = os.chmod, []

    def meanwhile(path: str, mode: int) -> None:
        if not others:
            others.append(door.opened())
            others[0].__enter__()
        chmod(path, mode)

    monkeypatch.setattr(os, "chmod", meanwhile)
    with door.opened() as listening, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(listening.path)
        others[0].__exit__(None, None, None)
        assert os.listdir(tmp_path) == [os.path.basename(listening.path)]
    assert os.listdir(tmp_path) == []


class Everything:
    """Gives out whatever is asked for, and counts the processes whose end is waited for."""

    following = 0

    async def hold(self, identity, peer, *, read_only):
        return Grant(self, Native(os.open(os.devnull, os.O_PATH | os.O_CLOEXEC), True, read_only))

    def attached(self, held, pid):
        pass

    def gone(self, held):
        pass

    async def follow(self, pidfd, held):
        self.following += 1
        try:
            await trio.sleep_forever()
        finally:
            os.close(pidfd)


async def test_what_somebody_says_again_and_again_costs_no_more_than_a_bounded_number(tmp_path, monkeypatch):
    monkeypatch.setattr(door, "trusted", lambda uid: False)
    natives = Everything()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(tmp_path / "socket"))
        listening.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(door.Door(natives, door.Outputs.__new__(door.Outputs), listening).serve)
            connection = await trio.to_thread.run_sync(wire.Connection, str(tmp_path / "socket"))

            def say(verb: str) -> None:
                _, given = connection.ask({"verb": verb}, [listening.fileno()] if verb == "hold" else [])
                for fd in given:
                    os.close(fd)

            for _ in range(2 * door.MOST):
                await trio.to_thread.run_sync(say, "hold")
                await trio.to_thread.run_sync(say, "attached")
            assert natives.following == door.MOST
            for _ in range(wire.DESCRIPTORS):
                await trio.to_thread.run_sync(say, "hold")
            with pytest.raises(wire.Answered, match="has to be mounted first"):
                await trio.to_thread.run_sync(say, "hold")
            connection.close()
            nursery.cancel_scope.cancel()

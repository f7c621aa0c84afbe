"""Which socket a client goes to, whatever lies where the name of one is looked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from as_user import as_user

from zfsfs.errors import MountError
from zfsfs.native.client import _named_in, socket_of
from zfsfs.native.wire import folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / ".zfsfs").mkdir()
    return tmp_path / ".zfsfs/socket"


def test_a_tree_names_its_socket(tmp_path, place):
    place.write_text("/run/zfsfs/ab\n")
    assert _named_in(str(tmp_path)) == "/run/zfsfs/ab"


@pytest.mark.parametrize(
    "text", ["", "\n", "relative\n", "/without an end", "/two\n/lines\n", "/\x1b[2J\n", "/\0\n", f"/{'x' * 200}\n"]
)
def test_what_is_no_name_is_refused_and_not_repeated(tmp_path, place, text):
    place.write_text(text)
    with pytest.raises(MountError) as refused:
        _named_in(str(tmp_path))
    assert str(refused.value) == f"{place} names no socket"


def test_no_link_is_followed_and_no_fifo_waited_for(tmp_path, place):
    (tmp_path / "secret").write_text("/secret\n")
    place.symlink_to(tmp_path / "secret")
    with pytest.raises(MountError, match="can't be read"):
        _named_in(str(tmp_path))
    place.unlink()
    os.mkfifo(place)
    with pytest.raises(MountError, match="names no socket"):
        _named_in(str(tmp_path))


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
@pytest.mark.parametrize("runtime", ["/nowhere", "/root", None])
def test_without_a_directory_for_it_a_users_sockets_are_in_one_of_his_own(monkeypatch, runtime):
    if runtime is None:
        monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    else:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    try:
        assert as_user(12345, lambda: os.listdir(folder())) == ""
        assert os.stat("/tmp/zfsfs-12345").st_mode & 0o777 == 0o700
    finally:
        os.rmdir("/tmp/zfsfs-12345")


def test_what_only_looks_like_a_tree_is_none(tmp_path, place):
    place.write_text("/run/zfsfs/ab\n")
    with pytest.raises(MountError, match="in no zfsfs"):
        socket_of(str(tmp_path))

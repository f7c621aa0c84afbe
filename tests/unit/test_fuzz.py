"""Anything at all as a name, a command line or what /proc shows: a refusal or a right answer, never a surprise."""

from __future__ import annotations

import os
import string
from unittest import mock

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from zfsfs import cli
from zfsfs.errors import InvalidName
from zfsfs.fs.holders import Wanted, container_of, mounts_in
from zfsfs.names import (
    MAX_FULL_NAME,
    BuildId,
    BuildName,
    CacheName,
    Dataset,
    PoolName,
    SessionName,
    Snapshot,
    cache,
    cache_of,
    cache_tmp,
    result,
    shown,
    tmp_number,
)
from zfsfs.store.layout import former_leaf, junk

NAMES = st.one_of(
    st.binary(max_size=300),
    st.text(string.printable, max_size=60).map(str.encode),
    st.lists(st.sampled_from([b"@", b".", b"..", b"/", b":", b"%", b"c-", b"r-", b"1", b"a", b" "]), max_size=8).map(
        b"".join
    ),
)
POOL = PoolName("tank/ci")
#: What zfs_namecheck.c allows in a component.
ALLOWED = set(string.ascii_letters + string.digits + "-_.: ")


def is_valid(dataset: Dataset) -> bool:
    """By ZFS's own rules, and within our group."""
    return set(dataset.leaf) <= ALLOWED and dataset.leaf not in (".", "..") and "/" not in dataset.leaf


@given(NAMES)
@example(b"a@b@c")
@example(b"\xff" * 255)
def test_a_build_is_refused_or_is_a_dataset(name: bytes) -> None:
    try:
        build = BuildName.parse(name)
    except InvalidName:
        return
    assert bytes(build) == name
    dataset = result(build.id)
    assert is_valid(dataset)
    assert Dataset.parse(str(dataset)) == dataset
    assert is_valid(junk(7, dataset.leaf))
    assert dataset.leaf.strip().startswith(former_leaf(junk(7, dataset.leaf)))


@given(NAMES)
@example(b"..@x")
@example(b"c-\n")
def test_a_cache_is_refused_or_is_a_dataset_of_its_own(name: bytes) -> None:
    try:
        session = SessionName.parse(name)
    except InvalidName:
        return
    assert bytes(session) == name
    for dataset in (cache(session.cache), cache_tmp(2**31, session.cache)):
        assert is_valid(dataset)
        assert cache_of(dataset) == session.cache
    assert tmp_number(cache_tmp(2**63, session.cache)) == 2**63
    try:
        assert len(POOL.full(Snapshot(cache(session.cache), "snap"))) <= MAX_FULL_NAME
    except InvalidName:
        assert len(session.cache.escaped()) > 200
    assert str(session).isprintable()


@given(st.binary(min_size=1, max_size=80), st.binary(min_size=1, max_size=80))
@example(b"\x01" + b"2", b"\x12")
def test_two_caches_are_two_datasets(one: bytes, other: bytes) -> None:
    try:
        names = CacheName(one), CacheName(other)
    except InvalidName:
        return
    assert (names[0].escaped() == names[1].escaped()) == (one == other)


@given(st.text(max_size=60))
def test_a_dataset_that_we_did_not_make_has_no_cache(text: str) -> None:
    found = CacheName.from_escaped(text)
    assert found is None or found.escaped() == text
    dataset = Dataset.parse(f"cache-tmp/{text}")
    if dataset is not None:
        cache_of(dataset)
        former_leaf(dataset)


@given(st.binary(max_size=300))
def test_what_is_shown_stands_on_one_line(name: bytes) -> None:
    assert shown(name).isprintable()


@given(st.binary(max_size=300))
def test_ids_have_no_other_names(name: bytes) -> None:
    said = ""
    try:
        assert str(BuildId(name)).encode() == name
    except InvalidName as failure:
        said = str(failure)
    assert said.isprintable()


@given(st.lists(st.binary(max_size=120).filter(lambda line: b"\n" not in line), max_size=5))
def test_what_proc_shows_is_read_or_passed_over(lines: list[bytes]) -> None:
    text = b"\n".join(lines)
    assert list(mounts_in(text, Wanted(5))) == []
    assert container_of(text).isprintable() or container_of(text) == ""


def test_containers_are_known_by_their_control_groups() -> None:
    ident = "0123456789abcdef" * 4
    for line in (
        f"0::/system.slice/docker-{ident}.scope",
        f"0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ident}.scope/container",
        f"12:pids:/kubepods/besteffort/pod12/{ident}",
        f"0::/docker/{ident}",
    ):
        assert container_of(line.encode()) == ident
    assert container_of(b"0::/machine.slice/systemd-nspawn@box.service/payload") == "box"
    assert container_of(b"0::/machine.slice/machine-box.scope") == "box"
    assert container_of(b"0::/lxc.payload.box/init.scope") == "box"
    assert container_of(b"0::/user.slice/session-1.scope\n") == ""


OPTIONS = "--help -f -o --linger --log --json --force --dry-run --max-builds --max-sessions"
VALUES = ["-1", "nan", "1e999", "linger=x", "rw,,", "--", ""]
WORDS = st.one_of(
    st.sampled_from(["mount", "umount", "status", "check", "recover", "who", *OPTIONS.split(), *VALUES]),
    st.text(max_size=20).map(lambda text: "/nowhere/" + text.replace("\0", "")),
)


@given(st.lists(WORDS, max_size=7))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_command_line_is_carried_out_or_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    with mock.patch("zfsfs.cli.background.in_background") as background, mock.patch("zfsfs.daemon.serve") as serve:
        with pytest.raises(SystemExit) as end:
            cli.main(words)
        for call in (*background.call_args_list, *serve.call_args_list):
            chosen = call.args[0]
            assert 0 <= chosen.linger < float("inf")
            assert os.path.isabs(chosen.mountpoint)
    said = capsys.readouterr()
    assert end.value.code in (0, None, 1, 2, 3, 6)
    assert "Traceback" not in said.err
    if end.value.code:
        assert said.err.startswith("zfsfs: ")
        assert said.err.count("\n") == 1

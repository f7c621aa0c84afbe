"""What a mountpoint is really called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from zfsfs.mountpoint import real


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("mnt", "mnt"),
        ("mnt/", "mnt"),
        ("link", "mnt"),
        ("link/", "mnt"),
        ("whole", "mnt"),
        ("second", "mnt"),
        ("slash", "mnt"),
        ("folder/up", "mnt"),
        ("elsewhere/up", "mnt"),
        ("folder/dots", "folder"),
        ("dot", ""),
        ("nothing", "nothing"),
        ("dangling", "missing"),
        ("missing/below", "missing/below"),
    ],
)
def test_links_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, target: str) -> None:
    (tmp_path / "mnt").mkdir()
    (tmp_path / "folder/sub").mkdir(parents=True)
    for link, text in {
        "link": "mnt", "whole": str(tmp_path / "mnt"), "second": "link", "slash": "mnt//", "folder/up": "../mnt",
        "elsewhere": "folder", "folder/dots": "sub/..", "dot": ".", "dangling": "missing",
    }.items():  # fmt: skip
        os.symlink(text, tmp_path / link)
    expected = os.path.normpath(tmp_path.resolve() / target)
    assert real(f"{tmp_path}/{name}") == expected
    monkeypatch.chdir(tmp_path)
    assert real(name) == expected


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    os.symlink("b", tmp_path / "a")
    os.symlink("a", tmp_path / "b")
    assert real(str(tmp_path / "a")).startswith(str(tmp_path.resolve()))


def test_the_directory_itself_is_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its daemon may be dead, and whoever asks is told so."""
    (tmp_path / "mnt").mkdir()
    os.symlink("mnt", tmp_path / "link")
    looked: list[str] = []
    look = os.lstat

    def looking(path: str) -> os.stat_result:
        looked.append(os.path.basename(path))
        return look(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "lstat", looking)
        found = real(str(tmp_path / "link"))
    assert found == str(tmp_path.resolve() / "mnt")
    assert tmp_path.name in looked
    assert "mnt" not in looked

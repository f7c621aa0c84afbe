"""Who has something natively, as far as it can be seen."""

from __future__ import annotations

import errno
import os

import pytest

from zfsfs.native.watching import look, where


def test_what_can_not_be_seen_now_is_not_taken_for_gone(tmp_path, monkeypatch):
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    place, real = where(fd, own_filesystem=False), os.listdir

    def short(path):
        if path.endswith("/fd"):
            raise OSError(errno.EMFILE, "there are no descriptors left")
        return real(path)

    monkeypatch.setattr(os, "listdir", short)
    with pytest.raises(OSError, match="no descriptors"):
        look({place: fd}, thoroughly=True)
    os.close(fd)

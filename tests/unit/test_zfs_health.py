"""What is wrong with a pool, read from where the kernel tells it."""

from __future__ import annotations

from pathlib import Path

import pytest

from zfsfs.zfs import health


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(health, "_STATE", f"{tmp_path}/{{}}")
    return tmp_path / "tank"


@pytest.mark.parametrize(
    ("text", "says"),
    [("ONLINE\n", ""), ("DEGRADED\n", ""), ("SUSPENDED\n", "zpool clear tank"), (None, "zpool import")],
)
def test_what_a_person_has_to_mend_is_said(state: Path, text: str | None, says: str) -> None:
    if text is not None:
        state.write_text(text)
    assert health.is_told("tank/ci") == (text is not None)
    trouble = health.trouble("tank/ci")
    assert says in trouble
    assert bool(says) == bool(trouble)


def test_a_state_that_can_not_be_looked_at_is_no_other_state(state: Path) -> None:
    state.mkdir()  # as bad as having no descriptor left
    with pytest.raises(OSError, match="tank"):
        health.trouble("tank/ci")

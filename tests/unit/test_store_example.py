"""The example in the documentation of zfsfs.store."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Awaitable, Callable
from pathlib import Path

import zfsfs.store
from zfsfs.directory.driver import DirectoryDriver
from zfsfs.store import check


async def test_the_example_runs_as_it_stands(tmp_path: Path) -> None:
    text = zfsfs.store.__doc__ or ""
    begin, end = text.index("    from zfsfs"), text.index("The errors are")
    names: dict[str, object] = {"os": os}
    exec(textwrap.dedent(text[begin:end]), names)
    example: Callable[[str], Awaitable[None]] = names["example"]  # type: ignore[assignment]
    where = str(tmp_path / "store")
    await example(where)
    driver = DirectoryDriver(where)
    listing = driver.list()
    driver.close()
    assert check(listing) == []
    assert {"result/one", "cache/c-npm"} <= {str(each) for each in listing}

"""Small things that tests of paths share."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def failing(number: int) -> Iterator[None]:
    """What is inside fails with this errno."""
    with pytest.raises(OSError) as failure:  # noqa: PT011 - the number is looked at below
        yield
    got = failure.value.errno or 0
    assert errno.errorcode.get(got) == errno.errorcode[number], failure.value


def errno_of(action: Callable[[], object]) -> int:
    """0 when it goes well."""
    try:
        action()
    except OSError as failure:
        return failure.errno or 0
    return 0

"""Files in memory, without a descriptor: Python's own mmap keeps one."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


@contextmanager
def mapped(path: Path, size: int = mmap.PAGESIZE) -> Iterator[memoryview]:
    """The beginning of a file, shared and to be written, while nobody has it open."""
    fd = os.open(path, os.O_RDWR)
    try:
        address = _libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
    finally:
        os.close(fd)
    assert address != ctypes.c_void_p(-1).value
    try:
        yield memoryview((ctypes.c_char * size).from_address(address)).cast("B")
    finally:
        _libc.munmap(address, size)

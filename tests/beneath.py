"""What an area shows, without a storage."""

from __future__ import annotations

import os
from pathlib import Path


class Beneath:
    """A view of a plain directory."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def close(self) -> None:
        os.close(self.fd)

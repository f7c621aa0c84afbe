"""What all commands' parsers have in common."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, NoReturn

from zfsfs.errors import UsageError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UsageError instead of printing a usage text and exiting."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; try {self.prog} --help")

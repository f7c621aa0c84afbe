"""What all commands' parsers have in common."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, NoReturn

from zfsfs.errors import UsageError

if TYPE_CHECKING:
    #: Where a module adds its commands.
    Commands = argparse._SubParsersAction["Parser"]


#: What takes a command of its own after '--'.
_TAKE_COMMAND = ("exec", "build")


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The arguments that are ours, and the command behind '--', which no parser shall look at."""
    if arguments[:1] and arguments[0] in _TAKE_COMMAND and "--" in arguments:
        at = arguments.index("--")
        return arguments[:at], arguments[at + 1 :]
    return arguments, []


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UsageError instead of printing a usage text and exiting."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; try {self.prog} --help")

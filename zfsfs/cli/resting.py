"""Commands on a store that is not mounted: check, recover."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from zfsfs.errors import Inconsistent

if TYPE_CHECKING:
    from zfsfs.cli.parsing import Commands


def add(commands: Commands) -> None:
    """Add the commands to the parser."""
    check = commands.add_parser("check", help="the invariants of a store at rest; changes nothing")
    check.set_defaults(run=_check)
    check.add_argument("store", metavar="STORE")
    recover = commands.add_parser("recover", help="what the next mount would repair")
    recover.set_defaults(run=_recover)
    recover.add_argument("store", metavar="STORE")
    recover.add_argument("--dry-run", action="store_true", required=True, help="print the plan; mount carries it out")


def _check(options: argparse.Namespace) -> None:
    from zfsfs.drivers import choose_driver
    from zfsfs.store import check, leftovers

    listing = choose_driver(options.store).list()
    problems = check(listing)
    for each in leftovers(listing):
        print(f"{each}: left by a build that did not end; the next mkdir of that id clears it")
    for problem in problems:
        print(problem)
    if problems:
        raise Inconsistent(f"{options.store}: {len(problems)} problems; a mount recovers what it can")
    print(f"{options.store}: all is well")


def _recover(options: argparse.Namespace) -> None:
    from zfsfs.drivers import choose_driver
    from zfsfs.store import plan

    actions = plan(choose_driver(options.store).list())
    for action in actions:
        print(action.text)
    if not actions:
        print(f"{options.store}: nothing to do")

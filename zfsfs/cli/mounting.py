"""zfsfs mount."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from typing import TYPE_CHECKING

from zfsfs.config import Config, builder_option, explanation, keep_failed, load
from zfsfs.errors import UsageError

if TYPE_CHECKING:
    from zfsfs.cli.parsing import Commands

#: Options of mount(8) that change nothing here, or that FUSE is told of as they are.
_IGNORED = {"rw", "defaults", "nosuid", "nodev", "user", "nouser", "auto", "noauto", "_netdev", "nofail", "noatime"}
_PASSED = {"allow_other", "allow_root", "noexec"}


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    mount = commands.add_parser(
        "mount", help="mount a store; returns when the tree is usable", epilog=explanation(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    mount.set_defaults(run=_mount)
    mount.add_argument("store", metavar="STORE")
    mount.add_argument("mountpoint", metavar="MOUNTPOINT")
    mount.add_argument(
        "-f", "--foreground", action="store_true", help="stay in the foreground, log to standard error"
    )
    mount.add_argument(
        "-o", dest="options", action="append", default=[], metavar="OPTIONS", help="as mount(8) has it"
    )
    mount.add_argument(
        "--linger", type=float, metavar="SECONDS", help="how long a session outlives its last user (2)"
    )
    for what, text in (("builds", "builds that run"), ("sessions", "open sessions of caches")):
        mount.add_argument(
            f"--max-{what}", type=int, default=256, metavar="N",
            help=f"how many {text} an ordinary user may have (256); more are EDQUOT. Root may have any number",
        )  # fmt: skip
    mount.add_argument(
        "--config", metavar="FILE", help="the configuration (/etc/zfsfs/STORE.toml, if it is there; see below)"
    )
    mount.add_argument(
        "--builder", action="append", default=[], metavar="NAME=COMMAND", help="what mkdir builds/NAME+ID runs"
    )
    mount.add_argument(
        "--keep-failed", metavar="N[/TIME]", help="keep so many failed builds in builds/.failed, for so long (0)"
    )
    mount.add_argument("--log", metavar="FILE", help="where the daemon's log goes (the system's log)")


def _config(options: argparse.Namespace) -> Config:
    config = load(options.config, options.store)
    builders = dict(config.builders)
    for text in options.builder:
        name, builder = builder_option(text)
        if name in builders:
            raise UsageError(f"--builder {text}: there is a builder {name} already")
        builders[name] = builder
    if options.keep_failed is not None:
        try:
            config = replace(config, keep_failed=keep_failed(options.keep_failed))
        except ValueError as failure:
            raise UsageError(f"--keep-failed {options.keep_failed}: it must be {failure}") from None
    return replace(config, builders=builders)


def _mount(options: argparse.Namespace) -> None:
    # Here, not above: what a daemon needs takes long to import, and most commands are none.
    from zfsfs.cli.background import in_background, log_to, tell_manager
    from zfsfs.daemon import Settings, serve

    config = _config(options)
    linger = next(each for each in (options.linger, config.linger, 2.0) if each is not None)
    log, foreground = options.log, options.foreground
    passed = set()
    for option in (each for text in options.options for each in text.split(",") if each):
        key, _, value = option.partition("=")
        if key == "linger":
            try:
                linger = float(value)
            except ValueError:
                raise UsageError(f"-o linger={value}: that is no number of seconds") from None
        elif key == "log" and value:
            log = value
        elif option in _PASSED:
            passed.add(option)
        elif option not in _IGNORED:
            raise UsageError(f"-o {option}: there is no such option")
    if not 0 <= linger < float("inf"):
        raise UsageError(f"--linger {linger}: seconds, not below 0")
    store = os.path.abspath(options.store) if options.store.startswith((".", "/")) else options.store
    most = options.max_builds, options.max_sessions
    if min(most) < 0:
        raise UsageError("--max-builds and --max-sessions: a number, not below 0")
    mountpoint = os.path.abspath(options.mountpoint)
    settings = Settings(store, mountpoint, linger, frozenset(passed), *most, config=config)
    if foreground:
        log_to(log, foreground=True)
        serve(settings, tell_manager)
        return
    in_background(settings, os.path.abspath(log) if log else None)

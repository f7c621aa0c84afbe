"""The store behind the tree: import from here."""

from zfsfs.store.builds import BuildInfo, Builds, ResultInfo
from zfsfs.store.caches import CacheInfo, Caches, Session
from zfsfs.store.check import check, leftovers
from zfsfs.store.events import Event, EventLog, Outcome
from zfsfs.store.reaper import Waiting
from zfsfs.store.recovery import Action, RecoveryReport, carry_out, plan, warnings
from zfsfs.store.store import Store

__all__ = [
    "Action",
    "BuildInfo",
    "Builds",
    "CacheInfo",
    "Caches",
    "Event",
    "EventLog",
    "Outcome",
    "RecoveryReport",
    "ResultInfo",
    "Session",
    "Store",
    "Waiting",
    "carry_out",
    "check",
    "leftovers",
    "plan",
    "warnings",
]

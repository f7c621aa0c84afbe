"""Builds, caches and their recovery, on any driver: the one door to them."""

from zfsfs.store.builds import BuildInfo, Builds, ResultInfo
from zfsfs.store.caches import CacheInfo, Caches, Session
from zfsfs.store.check import check, left_overs
from zfsfs.store.events import Event, EventLog, Outcome
from zfsfs.store.recovery import plan
from zfsfs.store.store import Store

__all__ = [
    "BuildInfo",
    "Builds",
    "CacheInfo",
    "Caches",
    "Event",
    "EventLog",
    "Outcome",
    "ResultInfo",
    "Session",
    "Store",
    "check",
    "left_overs",
    "plan",
]

"""How many crash points were tried, for the summary of a test run."""

from __future__ import annotations

from collections import Counter

#: (storage, sequence) -> crash points, and those of the recoveries from them.
points: Counter[tuple[str, str]] = Counter()
within: Counter[tuple[str, str]] = Counter()


def counted(storage: str, sequence: object, crashes: int, recoveries: int) -> None:
    """Some more."""
    points[storage, str(sequence)] += crashes
    within[storage, str(sequence)] += recoveries


def summary(verbose: bool) -> list[str]:
    """The lines of a summary: one for each storage, or for each sequence on it."""
    lines = []
    for storage in sorted({each for each, _ in points}):
        mine = [sequence for each, sequence in points if each == storage]
        total, more = sum(points[storage, each] for each in mine), sum(within[storage, each] for each in mine)
        lines.append(f"{storage}: {total} crash points, and {more} of the recoveries from them")
        if verbose:
            lines += [f"    {each}: {points[storage, each]} and {within[storage, each]}" for each in mine]
    return lines

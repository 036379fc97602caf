"""Spans of time: lists of (since, until) in unix seconds, sorted and disjoint. `until` may be infinite."""

from __future__ import annotations

from collections.abc import Iterable

Span = tuple[float, float]
FOREVER = float("inf")


def union(spans: Iterable[Span]) -> list[Span]:
    """Return the same times as sorted, disjoint spans without empty ones."""
    found: list[Span] = []
    for since, until in sorted(span for span in spans if span[0] < span[1]):
        if found and since <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], until))
        else:
            found.append((since, until))
    return found


def intersect(first: Iterable[Span], second: Iterable[Span]) -> list[Span]:
    """Return the times that are in both."""
    others = list(second)
    return union((max(a, c), min(b, d)) for a, b in first for c, d in others)


def subtract(spans: Iterable[Span], removed: Iterable[Span]) -> list[Span]:
    """Return the times of `spans` that are not in `removed`."""
    left = union(spans)
    for since, until in union(removed):
        left = [part for a, b in left for part in ((a, min(b, since)), (max(a, until), b)) if part[0] < part[1]]
    return left


def seconds(spans: Iterable[Span]) -> float:
    """Return how long the spans last in all."""
    return sum(until - since for since, until in union(spans))


def overlap(one: Span, other: Span) -> bool:
    """Whether two spans have a moment in common; a span of no length is a moment."""
    return one[0] <= other[1] and other[0] <= one[1]

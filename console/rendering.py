"""Templates, and how values are shown in them: bounded, and with every control character visible."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from shared.operator import stories

_FOLDER = Path(__file__).parent / "templates"
#: Of Unicode's categories, those that are not seen or change how others are: controls, formats (with the marks that
#: turn the direction of text), surrogates, private and unassigned characters, separators of lines.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
MOST_SHOWN = 200
#: Where there is no value.
NONE = "\N{EN DASH}"


def environment(asset: Callable[[str], str]) -> jinja2.Environment:
    """Return the environment of all templates.

    Args:
        asset: Returns the URL of a file of `console/static/`.
    """
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.globals["asset"] = asset
    made.globals["none_shown"] = NONE
    made.filters |= {
        each.__name__: each
        for each in (
            shown,
            moment,
            clock,
            seconds,
            milliseconds,
            duration,
            heartbeat,
            count,
            count_or_dot,
            precisely,
            span,
            minutes,
        )
    }
    return made


def shown(value: object, most: int = MOST_SHOWN) -> Markup:
    """Return a text from outside as HTML: at most so many characters, and what is not seen as its number.

    It is isolated, so that a text from right to left moves nothing around it.
    """
    text = str(value)
    parts = [
        Markup('<span class="escaped">{}</span>').format(_code(char)) if _is_unseen(char) else escape(char)
        for char in text[:most]
    ]
    cut = (
        Markup('<span class="cut" title="{} characters">…</span>').format(f"{len(text):,}") if len(text) > most else ""
    )
    return Markup("<bdi>{}</bdi>{}").format(Markup("").join(parts), cut)


def _is_unseen(char: str) -> bool:
    return unicodedata.category(char) in _UNSEEN


def _code(char: str) -> str:
    return f"\\x{ord(char):02x}" if ord(char) < 256 else f"\\u{ord(char):04x}"


def moment(at: datetime | None, *, day: bool = False) -> Any:
    """Return a moment as HTML, in UTC: the time, by wish with the day."""
    if at is None:
        return NONE
    text = f"{at:%Y-%m-%d %H:%M:%S}" if day else f"{at:%H:%M:%S}"
    return Markup('<time datetime="{}">{}</time>').format(at.isoformat(), text)


def precisely(at: datetime) -> Markup:
    """Return a moment as HTML, in UTC, to the millisecond."""
    return Markup('<time datetime="{}">{}</time>').format(at.isoformat(), f"{at:%H:%M:%S}.{at.microsecond // 1000:03}")


def span(value: float | None) -> str:
    """Return how long something took, given in seconds: milliseconds below one second."""
    return NONE if value is None else stories.duration(value)


def minutes(value: float | None) -> str:
    """Return minutes: below a hundred with their tenths."""
    return NONE if value is None else f"{value:,.1f}" if value < 100 else count(value)


def clock(text: str) -> Any:
    """Return a moment of ISO 8601 as HTML: the day and the time, in the zone that it is given in."""
    return Markup('<time datetime="{}">{}</time>').format(text[:40], text[:19].replace("T", " "))


def duration(value: float | None) -> str:
    """Return a duration given in seconds, in milliseconds if it is short."""
    return milliseconds(value * 1000) if value is not None and value < 1 else seconds(value)


def heartbeat(value: float) -> str:
    """Return how long ago a process was heard of, so that it seldom changes: what is unchanged is not sent again."""
    return "within 5 s" if value < 5 else f"{seconds(value if value < 10 else value // 10 * 10)} ago"


def count_or_dot(value: int) -> str:
    """Return a number, or a dot for none: in a table of mostly nothing something is seen."""
    return count(value) if value else "\N{MIDDLE DOT}"


def seconds(value: float | None) -> str:
    """Return a duration given in seconds, as the largest unit that says it."""
    if value is None:
        return NONE
    if value < 10:
        return f"{value:.1f} s"
    if value < 120:
        return f"{value:.0f} s"
    if value < 7200:
        return f"{value / 60:.0f} min"
    if value < 172_800:
        return f"{value / 3600:.0f} h"
    return f"{value / 86_400:.0f} d"


def milliseconds(value: float | None) -> str:
    """Return a duration given in milliseconds."""
    return NONE if value is None else f"{value:,.0f} ms"


def count(value: float | None) -> str:
    """Return a number with its thousands apart."""
    return NONE if value is None else f"{value:,.0f}"

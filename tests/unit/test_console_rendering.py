"""What comes from outside is shown, and never run: bounded, isolated, with every unseen character visible."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from console import rendering

TEMPLATES = Path(rendering.__file__).parent / "templates"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Anna & Co", "<bdi>Anna &amp; Co</bdi>"),
        ("<script>alert(1)</script>", "<bdi>&lt;script&gt;alert(1)&lt;/script&gt;</bdi>"),
        ("a\u202eb", '<bdi>a<span class="escaped">\\u202e</span>b</bdi>'),
        ("\x00\x1b[31m", '<bdi><span class="escaped">\\x00</span><span class="escaped">\\x1b</span>[31m</bdi>'),
        ("zero\u200bwidth", '<bdi>zero<span class="escaped">\\u200b</span>width</bdi>'),
        ("\ud800", '<bdi><span class="escaped">\\ud800</span></bdi>'),
        ("\u05e9\u05dc\u05d5\u05dd", "<bdi>\u05e9\u05dc\u05d5\u05dd</bdi>"),
        ('" onmouseover="x', "<bdi>&#34; onmouseover=&#34;x</bdi>"),
    ],
)
def test_text_is_shown_as_it_is_and_what_is_unseen_as_its_number(text: str, expected: str) -> None:
    assert str(rendering.shown(text)) == expected


def test_long_text_is_cut_and_says_how_long_it_was() -> None:
    shown = str(rendering.shown("x" * 10_240))
    assert shown == f'<bdi>{"x" * 200}</bdi><span class="cut" title="10,240 characters">…</span>'
    assert len(str(rendering.shown("\u202e" * 10_240))) < 10_000


def test_a_value_of_a_template_is_escaped_by_itself() -> None:
    made = rendering.environment(lambda name: name)
    assert made.from_string("{{ text }}").render(text="<b>") == "&lt;b&gt;"


def test_no_template_has_anything_that_the_policy_would_refuse() -> None:
    """Scripts and styles in a page are not run: `script-src 'self'` and `style-src 'self'`."""
    found = sorted(TEMPLATES.glob("*.html"))
    assert len(found) >= 4
    for path in found:
        text = path.read_text()
        assert not re.search(r"<script(?![^>]*\ssrc=)", text), path
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:|hx-on|hx-vals=.js|\|\s*safe", text), path
        assert "http://" not in text, path
        assert "https://" not in text, path


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, rendering.NONE),
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (75, "75 s"),
        (600, "10 min"),
        (90_000, "25 h"),
        (1e6, "12 d"),
    ],
)
def test_a_duration_is_said_in_its_largest_unit(value: float | None, expected: str) -> None:
    assert rendering.seconds(value) == expected

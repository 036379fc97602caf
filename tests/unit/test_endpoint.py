"""An endpoint has one canonical spelling, or is refused without showing what it contains."""

from __future__ import annotations

import pytest

from shared import errors
from shared.asterisk import endpoint


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("http://pbx.example", "http://pbx.example"),
        ("http://pbx.example/", "http://pbx.example"),
        ("  http://pbx.example\n", "http://pbx.example"),
        ("HTTP://Pbx.Example:80/asterisk/", "http://pbx.example/asterisk"),
        ("https://pbx.example:443", "https://pbx.example"),
        ("https://pbx.example:80", "https://pbx.example:80"),
        ("http://pbx.example:443", "http://pbx.example:443"),
        ("http://pbx.example:8088", "http://pbx.example:8088"),
        ("http://pbx.example.", "http://pbx.example"),
        ("http://pbx.example/ari", "http://pbx.example"),
        ("http://pbx.example/ari/", "http://pbx.example"),
        ("http://pbx.example//ari//", "http://pbx.example"),
        ("https://pbx.example/asterisk", "https://pbx.example/asterisk"),
        ("https://pbx.example/Asterisk/Two/ari", "https://pbx.example/Asterisk/Two"),
        ("http://127.0.0.1:8088", "http://127.0.0.1:8088"),
        ("http://[::1]:8088", "http://[::1]:8088"),
        ("http://[2001:DB8::1]", "http://[2001:db8::1]"),
    ],
)
def test_an_endpoint_has_one_spelling(text: str, canonical: str) -> None:
    assert endpoint.canonical_endpoint(text) == canonical
    assert endpoint.canonical_endpoint(canonical) == canonical


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "must begin with http"),
        ("pbx.example:8088", "must begin with http"),
        ("//pbx.example", "must begin with http"),
        ("ftp://pbx.example", "must begin with http"),
        ("file:///etc/passwd", "must begin with http"),
        ("ws://pbx.example", "must begin with http"),
        ("http://", "no host"),
        ("http://:8088", "no host"),
        ("http://./", "no host"),
        ("http://pbx example", "no host, or contains a space"),
        ("http://pbx.example/a b", "a space"),
        ("http://pbx.example:port", "not a URL"),
        ("http://pbx.example:99999", "not a URL"),
        ("http://[::1", "not a URL"),
        ("http://pbx.example:0", "names the port 0"),
        ("https://[::1]:00/asterisk", "names the port 0"),
        ("http://voiceai@pbx.example", "must not contain credentials"),
        ("http://@pbx.example", "must not contain credentials"),
        ("http://voiceai:hunter2@pbx.example", "must not contain credentials"),
        ("http://voiceai:hun@ter2@pbx.example", "must not contain credentials"),
        ("http://pbx.example?api_key=hunter2", "must have no"),
        ("http://pbx.example/#hunter2", "must have no"),
    ],
)
def test_what_is_no_endpoint_is_refused(text: str, reason: str) -> None:
    with pytest.raises(errors.InvalidConfiguration, match=reason) as caught:
        endpoint.canonical_endpoint(text)
    assert "hunter2" not in str(caught.value)

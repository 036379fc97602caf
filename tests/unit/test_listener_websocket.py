"""The URL of an event socket and its header."""

import base64

import pytest

from listener import websocket
from shared import errors


@pytest.mark.parametrize(
    ("endpoint", "app", "url"),
    [
        ("http://pbx:8088", "voiceai", "ws://pbx:8088/ari/events?app=voiceai&subscribeAll=false"),
        ("https://pbx.example", "a", "wss://pbx.example/ari/events?app=a&subscribeAll=false"),
        ("https://pbx.example/asterisk", "a", "wss://pbx.example/asterisk/ari/events?app=a&subscribeAll=false"),
        ("http://pbx/a/b/", "a", "ws://pbx/a/b/ari/events?app=a&subscribeAll=false"),
        ("http://[::1]:8088", "a", "ws://[::1]:8088/ari/events?app=a&subscribeAll=false"),
        ("http://pbx", "a&b=c d/é", "ws://pbx/ari/events?app=a%26b%3Dc%20d%2F%C3%A9&subscribeAll=false"),
    ],
)
def test_url_keeps_the_prefix_and_quotes_the_app(endpoint: str, app: str, url: str) -> None:
    assert websocket.socket_url(endpoint, app) == url


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "pbx:8088",
        "ws://pbx",
        "ftp://pbx",
        "http://",
        "http:///prefix",
        "http://pbx:port",
        "http://pbx:99999",
        "http://[::1",
        "http://user:password@pbx",
        "http://pbx/?a=b",
        "http://pbx/#fragment",
        "http://pbx\r\nHost: other",
        "http://pbx/a b",
    ],
)
def test_an_invalid_endpoint_is_refused_without_showing_it(endpoint: str) -> None:
    with pytest.raises(errors.InvalidConfiguration) as refusal:
        websocket.socket_url(endpoint, "app")
    assert "password" not in str(refusal.value)


@pytest.mark.parametrize("password", ["secret", "pass word", "& # % + :", "ümläut €", ""])
def test_header_carries_any_password(password: str) -> None:
    scheme, credentials = websocket.authorization("user", password).split()
    assert scheme == "Basic"
    assert base64.b64decode(credentials).decode() == f"user:{password}"


@pytest.mark.parametrize(("user", "password"), [("us:er", "hunter2"), ("user", "hunter2\ud800")])
def test_credentials_that_cannot_be_sent_are_refused_without_showing_them(user: str, password: str) -> None:
    with pytest.raises(errors.InvalidConfiguration) as refusal:
        websocket.authorization(user, password)
    assert "hunter2" not in str(refusal.value)
    assert refusal.value.__cause__ is None
    assert refusal.value.__suppress_context__ or refusal.value.__context__ is None

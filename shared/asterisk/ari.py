"""The requests to an Asterisk that calls need, each a method with its own outcome."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from shared import errors
from shared.asterisk import events, rest
from shared.asterisk.endpoint import Configuration
from shared.asterisk.events import Channel
from shared.asterisk.rest import plain

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bridge:
    """A bridge and who is in it."""

    id: str
    channels: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Application:
    """The subscriptions of an app: a hint that a channel exists, no proof that one does not."""

    channels: frozenset[str]
    #: The event types its filter lets through; empty when there is no filter.
    allowed: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class WebsocketClient:
    """A client of websocket_client.conf, without its credentials."""

    uri: str
    protocols: str
    connection_type: str


class Client(Protocol):
    """Sends requests to one Asterisk. `rest.RestClient` is the adapter."""

    @property
    def configuration(self) -> Configuration:
        """Where it sends requests, and the credentials for them."""

    def request(
        self, budget: rest.RequestBudget, method: str, path: Sequence[str], query: Mapping[str, str] | None = None,
        body: object = None,
    ) -> Any:  # fmt: skip
        """Make one request, once."""

    def must_probe(self, budget: rest.RequestBudget) -> bool:
        """Whether a harmless request must come first. Raises AsteriskUnreachable while the breaker is open."""


class Ari:
    """One step's requests to an Asterisk. Each method raises as `RestClient.request` does.

    That a resource is already gone is an outcome here, never an error.
    """

    def __init__(self, client: Client, budget: rest.RequestBudget) -> None:
        self._client = client
        self._budget = budget

    @property
    def app(self) -> str:
        """The Stasis app."""
        return self._client.configuration.app

    @property
    def must_probe(self) -> bool:
        """Whether a harmless request must come first. Raises AsteriskUnreachable while the breaker is open."""
        return self._client.must_probe(self._budget)

    @property
    def endpoint(self) -> str:
        """Its canonical endpoint: several apps of one Asterisk share it."""
        return self._client.configuration.endpoint

    def channel(self, channel_id: str) -> Channel | None:
        """Return the channel; None if there is none with that id."""
        return self._unless_gone(["channels", channel_id], _parsed_channel)

    def create_media(self, channel_id: str, *, client: str, parameters: Mapping[str, str]) -> None:
        """Create a media leg. Success is not readiness: the leg is ready at its own StasisStart.

        The id must never have been used before: a second request with it crashes this Asterisk (measured, 22.10).
        """
        self._ask("POST", ["channels", "externalMedia"], {
            "app": self.app,
            "external_host": client,
            "format": "ulaw",
            "transport": "websocket",
            "encapsulation": "none",
            "connection_type": "client",
            "direction": "both",
            "channelId": channel_id,
            "transport_data": transport_data(parameters),
        })  # fmt: skip

    def originate(
        self, channel_id: str, *, endpoint: str, args: str, caller_id: str | None, ring_seconds: float
    ) -> None:
        """Create a leg to the far end, which enters our app when it answers. A 409 means it was created before.

        Raises (in addition to what all methods raise):
            AsteriskRefused: Also for an endpoint that cannot be dialled, which Asterisk answers with a 500.
        """
        query = {
            "endpoint": endpoint,
            "app": self.app,
            "appArgs": args,
            "channelId": channel_id,
            "timeout": str(max(1, round(ring_seconds))),
        }
        if caller_id:
            query["callerId"] = caller_id
        if endpoint.startswith("Local/"):
            # Asterisk would use 192 kHz otherwise, at 3 % of a core for each call (measured, 22.10).
            query["formats"] = "ulaw"
        try:
            self._ask("POST", ["channels"], query)
        except errors.AsteriskRefused as exc:
            if exc.status != 409:
                raise
        except errors.AsteriskUnreachable as exc:
            if str(exc) == f"answered 500 {rest.NOT_DIALLED}":
                raise errors.AsteriskRefused(500, rest.NOT_DIALLED) from exc
            raise

    def set_variable(self, channel_id: str, name: str, value: str) -> None:
        """Set a channel variable, for the dialplan; does nothing if the channel is gone."""
        self._or_gone("POST", ["channels", channel_id, "variable"], {"variable": name, "value": value})

    def continue_in_dialplan(self, channel_id: str) -> bool:
        """Let a leg continue in the dialplan, after Stasis. False if it is gone, or has already left Stasis."""
        try:
            self._ask("POST", ["channels", channel_id, "continue"])
        except errors.AsteriskRefused as exc:
            if exc.status in (404, 409):
                return False
            raise
        return True

    def create_bridge(self, bridge_id: str) -> None:
        """Create a mixing bridge. A 409 means that we created it before: the id is ours."""
        try:
            self._ask("POST", ["bridges", bridge_id], {"type": "mixing", "name": bridge_id})
        except errors.AsteriskRefused as exc:
            if exc.status != 409:
                raise

    def bridge(self, bridge_id: str) -> Bridge | None:
        """Return the bridge; None if there is none with that id."""
        return self._unless_gone(["bridges", bridge_id], _parsed_bridge)

    def bridges(self) -> list[Bridge]:
        """Return every bridge of this Asterisk, ours or not."""
        document = self._ask("GET", ["bridges"])
        if not isinstance(document, list):
            raise errors.AsteriskUnreachable("the answer is not a list of bridges", may_have_acted=False)
        return [_parsed_bridge(entry) for entry in document]

    def add_legs(self, bridge_id: str, channel_ids: Sequence[str]) -> None:
        """Put legs into a bridge. Refused with 422 if one of them is not in Stasis; then none is added.

        A leg that is in the bridge already would leave and come back, which is audible: check first.
        """
        self._ask("POST", ["bridges", bridge_id, "addChannel"], {"channel": ",".join(channel_ids)})

    def answer(self, channel_id: str) -> bool:
        """Answer a channel; twice is harmless. False if the channel is gone."""
        return self._or_gone("POST", ["channels", channel_id, "answer"])

    def hang_up(self, channel_id: str, cause: int | None = None) -> bool:
        """Hang up a channel. False if it was gone; True if it was told to hang up, which takes it a moment."""
        return self._or_gone("DELETE", ["channels", channel_id], {"reason_code": str(cause)} if cause else None)

    def remove_bridge(self, bridge_id: str) -> bool:
        """Remove a bridge, but not its channels. False if it was gone."""
        return self._or_gone("DELETE", ["bridges", bridge_id])

    def application(self) -> Application | None:
        """Return our app; None if Asterisk no longer knows it: it has neither an event socket nor a channel."""
        return self._unless_gone(["applications", self.app], _parsed_application)

    def set_event_filter(self, types: Sequence[str]) -> None:
        """Let only these events through. The filter is lost with the app, so it is set after each connect."""
        body = {"allowed": [{"type": name} for name in types]}
        self._ask("PUT", ["applications", self.app, "eventFilter"], body=body)

    def version(self) -> str:
        """Return Asterisk's version as it writes it: `22.10.1+dfsg`, `certified-20.7-cert3`, `GIT-22-abc`."""
        document = self._ask("GET", ["asterisk", "info"])
        system = document.get("system") if isinstance(document, dict) else None
        return plain(system.get("version", "")) if isinstance(system, dict) else ""

    def modules(self) -> dict[str, str]:
        """Return name, without `.so` → status (`Running`), of every loaded module."""
        document = self._ask("GET", ["asterisk", "modules"])
        if not isinstance(document, list):
            raise errors.AsteriskUnreachable("the answer is not a list of modules", may_have_acted=False)
        entries = [entry for entry in document if isinstance(entry, dict)]
        return {plain(entry.get("name")).removesuffix(".so"): plain(entry.get("status")) for entry in entries}

    def websocket_client(self, name: str) -> WebsocketClient | None:
        """Return a client of websocket_client.conf; None if there is none with that name (measured, 22.10)."""
        path = ["asterisk", "config", "dynamic", "res_websocket_client", "websocket_client", name]
        try:
            document = self._ask("GET", path)
        except errors.AsteriskUnreachable as exc:
            message = plain(f"Object with id '{name}' not found")
            if str(exc) == f"answered 404 {message}":
                return None
            raise
        # The other attributes, a user and a password among them, are dropped here.
        pairs = {entry.get("attribute"): entry.get("value") for entry in document or () if isinstance(entry, dict)}
        wanted = ("uri", "protocols", "connection_type")
        return WebsocketClient(**{key: plain(pairs.get(key) or "") for key in wanted})

    def _ask(
        self, method: str, path: Sequence[str], query: Mapping[str, str] | None = None, body: object = None
    ) -> Any:
        return self._client.request(self._budget, method, path, query, body)

    def _or_gone(self, method: str, path: Sequence[str], query: Mapping[str, str] | None = None) -> bool:
        """Make a request; False if its resource was gone."""
        try:
            self._ask(method, path, query)
        except errors.AsteriskRefused as exc:
            if exc.status == 404:
                return False
            raise
        return True

    def _unless_gone(self, path: Sequence[str], read: Callable[[Any], _T]) -> _T | None:
        """Return a resource; None only if Asterisk says expressly that it is gone."""
        try:
            document = self._ask("GET", path)
        except errors.AsteriskRefused as exc:
            if exc.status == 404:
                return None
            raise
        return read(document)


def transport_data(parameters: Mapping[str, str]) -> str:
    """Return `v(a=1,b=2)`, the query of the media URL. Values are encoded: a raw `)` or `,` would inject."""
    pairs = (f"{name}={urllib.parse.quote(value, safe='')}" for name, value in parameters.items())
    return f"v({','.join(pairs)})"


def _parsed_channel(document: Any) -> Channel:
    try:
        return events.parse_channel(document)
    except errors.InvalidEvent as exc:
        raise errors.AnswerUnreadable(f"the answer is not a readable channel: {exc}", may_have_acted=False) from exc


def _parsed_bridge(document: Any) -> Bridge:
    if not isinstance(document, dict) or not isinstance(document.get("id"), str):
        raise errors.AsteriskUnreachable("the answer is not a readable bridge", may_have_acted=False)
    return Bridge(id=plain(document["id"]), channels=frozenset(map(plain, _listed(document, "channels"))))


def _parsed_application(document: Any) -> Application:
    if not isinstance(document, dict):
        raise errors.AsteriskUnreachable("the answer is not an application", may_have_acted=False)
    allowed = _listed(document, "events_allowed")
    return Application(
        channels=frozenset(map(plain, _listed(document, "channel_ids"))),
        allowed=frozenset(plain(entry.get("type")) for entry in allowed if isinstance(entry, dict)),
    )


def _listed(document: dict[str, Any], key: str) -> list[Any]:
    value = document.get(key) or []
    if not isinstance(value, list):
        raise errors.AsteriskUnreachable(f"the answer's {key} is not a list", may_have_acted=False)
    return value

"""What is asked of an Asterisk, in the words of a call."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from shared import errors
from shared.asterisk import events, rest
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
    """What an app is subscribed to: a hint at what exists, not proof that it does not."""

    channels: frozenset[str]
    #: The event types its filter lets through; empty when there is no filter.
    allowed: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class WebsocketClient:
    """What websocket_client.conf says of one client; without its credentials."""

    uri: str
    protocols: str
    connection_type: str


class Server(Protocol):
    """Where requests go. `rest.Asterisk` is the adapter."""

    @property
    def target(self) -> rest.Target:
        """Where and as whom we ask."""

    def request(
        self, budget: rest.RequestBudget, method: str, path: Sequence[str], query: Mapping[str, str] | None = None,
        body: object = None,
    ) -> Any:  # fmt: skip
        """Makes one request, once."""

    def must_probe(self, budget: rest.RequestBudget) -> bool:
        """Whether it has to show first that it answers. Raises AsteriskUnreachable while it is left alone."""


class Ari:
    """What we ask an Asterisk for, in the words of a call. Each raises as `Asterisk.request` does.

    What is already gone is an outcome here, never an error.
    """

    def __init__(self, asterisk: Server, budget: rest.RequestBudget) -> None:
        self._asterisk = asterisk
        self._witness = budget

    @property
    def app(self) -> str:
        """The Stasis app."""
        return self._asterisk.target.app

    @property
    def must_probe(self) -> bool:
        """Whether it has to show first that it answers. Raises AsteriskUnreachable while it is left alone."""
        return self._asterisk.must_probe(self._witness)

    @property
    def endpoint(self) -> str:
        """Where it is: several apps of one Asterisk have one endpoint."""
        return self._asterisk.target.endpoint

    def channel(self, channel_id: str) -> Channel | None:
        """The channel, or None when there is none of that id."""
        return self._unless_gone(["channels", channel_id], _parsed_channel)

    def create_media(self, channel_id: str, *, client: str, parameters: Mapping[str, str]) -> None:
        """Asks for a media leg. Success is not readiness: the leg is ready at its own StasisStart.

        The id must never have been used: a second request with one crashes this Asterisk (measured, 22.10).
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
        """Asks for a leg to the far end, which enters our app when it answers. One of that id there: done before (409).

        Raises (beside what all raise):
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
            # It would talk 192 kHz otherwise, at 3 % of a core a call (measured, 22.10).
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
        """Sets a channel variable, for the dialplan. One whose channel is gone is nobody's."""
        self._or_gone("POST", ["channels", channel_id, "variable"], {"variable": name, "value": value})

    def continue_in_dialplan(self, channel_id: str) -> bool:
        """Lets a leg go on in the dialplan, behind Stasis. False when it is gone, or has left already."""
        try:
            self._ask("POST", ["channels", channel_id, "continue"])
        except errors.AsteriskRefused as exc:
            if exc.status in (404, 409):
                return False
            raise
        return True

    def create_bridge(self, bridge_id: str) -> None:
        """Makes a mixing bridge; one of that id already there means it was made by us before (409)."""
        try:
            self._ask("POST", ["bridges", bridge_id], {"type": "mixing", "name": bridge_id})
        except errors.AsteriskRefused as exc:
            if exc.status != 409:
                raise

    def bridge(self, bridge_id: str) -> Bridge | None:
        """The bridge, or None when there is none of that id."""
        return self._unless_gone(["bridges", bridge_id], _parsed_bridge)

    def bridges(self) -> list[Bridge]:
        """Every bridge of this Asterisk, ours or not."""
        document = self._ask("GET", ["bridges"])
        if not isinstance(document, list):
            raise errors.AsteriskUnreachable("answered something else than a list of bridges", may_have_acted=False)
        return [_parsed_bridge(entry) for entry in document]

    def add_legs(self, bridge_id: str, channel_ids: Sequence[str]) -> None:
        """Puts legs into a bridge. Refused with 422 when one of them is not in Stasis: then none is added.

        A leg that is in already would leave and come back, which is heard: look first.
        """
        self._ask("POST", ["bridges", bridge_id, "addChannel"], {"channel": ",".join(channel_ids)})

    def answer(self, channel_id: str) -> bool:
        """Answers; twice is fine. False when the channel is gone."""
        return self._or_gone("POST", ["channels", channel_id, "answer"])

    def hang_up(self, channel_id: str, cause: int | None = None) -> bool:
        """Hangs a channel up. False when it was gone; True when it was told to go, which takes it a moment."""
        return self._or_gone("DELETE", ["channels", channel_id], {"reason_code": str(cause)} if cause else None)

    def remove_bridge(self, bridge_id: str) -> bool:
        """Removes a bridge, leaving its channels alone. False when it was gone."""
        return self._or_gone("DELETE", ["bridges", bridge_id])

    def application(self) -> Application | None:
        """Our app, or None when Asterisk knows it no more: it has neither socket nor channel."""
        return self._unless_gone(["applications", self.app], _parsed_application)

    def set_event_filter(self, types: Sequence[str]) -> None:
        """Lets only these events through; lost with the app, so asked for after each connect."""
        body = {"allowed": [{"type": name} for name in types]}
        self._ask("PUT", ["applications", self.app, "eventFilter"], body=body)

    def version(self) -> str:
        """Asterisk's version, as it says it: `22.10.1+dfsg`, `certified-20.7-cert3`, `GIT-22-abc`."""
        document = self._ask("GET", ["asterisk", "info"])
        system = document.get("system") if isinstance(document, dict) else None
        return plain(system.get("version", "")) if isinstance(system, dict) else ""

    def modules(self) -> dict[str, str]:
        """Name, without `.so` → status (`Running`) of every module that is loaded."""
        document = self._ask("GET", ["asterisk", "modules"])
        if not isinstance(document, list):
            raise errors.AsteriskUnreachable("answered something else than a list of modules", may_have_acted=False)
        entries = [entry for entry in document if isinstance(entry, dict)]
        return {plain(entry.get("name")).removesuffix(".so"): plain(entry.get("status")) for entry in entries}

    def websocket_client(self, name: str) -> WebsocketClient | None:
        """A client of websocket_client.conf; None when there is none of that name (measured, 22.10)."""
        path = ["asterisk", "config", "dynamic", "res_websocket_client", "websocket_client", name]
        try:
            document = self._ask("GET", path)
        except errors.AsteriskUnreachable as exc:
            message = plain(f"Object with id '{name}' not found")
            if str(exc) == f"answered 404 {message}":
                return None
            raise
        # The others, a user and a password among them, are dropped here.
        pairs = {entry.get("attribute"): entry.get("value") for entry in document or () if isinstance(entry, dict)}
        wanted = ("uri", "protocols", "connection_type")
        return WebsocketClient(**{key: plain(pairs.get(key) or "") for key in wanted})

    def _ask(
        self, method: str, path: Sequence[str], query: Mapping[str, str] | None = None, body: object = None
    ) -> Any:
        return self._asterisk.request(self._witness, method, path, query, body)

    def _or_gone(self, method: str, path: Sequence[str], query: Mapping[str, str] | None = None) -> bool:
        """Asks; False when what it is about was gone."""
        try:
            self._ask(method, path, query)
        except errors.AsteriskRefused as exc:
            if exc.status == 404:
                return False
            raise
        return True

    def _unless_gone(self, path: Sequence[str], read: Callable[[Any], _T]) -> _T | None:
        """What is there; None only when Asterisk says in so many words that it is gone."""
        try:
            document = self._ask("GET", path)
        except errors.AsteriskRefused as exc:
            if exc.status == 404:
                return None
            raise
        return read(document)


def transport_data(parameters: Mapping[str, str]) -> str:
    """`v(a=1,b=2)`: becomes the query of the media URL. Values are encoded: a raw `)` or `,` would inject."""
    pairs = (f"{name}={urllib.parse.quote(value, safe='')}" for name, value in parameters.items())
    return f"v({','.join(pairs)})"


def _parsed_channel(document: Any) -> Channel:
    try:
        return events.parse_channel(document)
    except errors.InvalidEvent as exc:
        raise errors.AnswerUnreadable(f"answered an unreadable channel: {exc}", may_have_acted=False) from exc


def _parsed_bridge(document: Any) -> Bridge:
    if not isinstance(document, dict) or not isinstance(document.get("id"), str):
        raise errors.AsteriskUnreachable("answered an unreadable bridge", may_have_acted=False)
    return Bridge(id=plain(document["id"]), channels=frozenset(map(plain, _listed(document, "channels"))))


def _parsed_application(document: Any) -> Application:
    if not isinstance(document, dict):
        raise errors.AsteriskUnreachable("answered something else than an application", may_have_acted=False)
    allowed = _listed(document, "events_allowed")
    return Application(
        channels=frozenset(map(plain, _listed(document, "channel_ids"))),
        allowed=frozenset(plain(entry.get("type")) for entry in allowed if isinstance(entry, dict)),
    )


def _listed(document: dict[str, Any], key: str) -> list[Any]:
    value = document.get(key) or []
    if not isinstance(value, list):
        raise errors.AsteriskUnreachable(f"answered {key} that is no list", may_have_acted=False)
    return value

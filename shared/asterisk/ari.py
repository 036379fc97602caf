"""The requests to an Asterisk that calls need, each with its own outcome."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from shared import errors
from shared.asterisk import ari_requests, rest
from shared.asterisk.ari_requests import Bridge
from shared.asterisk.endpoint import Configuration
from shared.asterisk.events import Channel
from shared.asterisk.rest import AnswerKind, Request, plain

_T = TypeVar("_T")


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

    def request_all(self, budget: rest.RequestBudget, requests: Sequence[Request[Any]]) -> list[Any]:
        """Make several requests at the same time, each once; return each one's JSON or PipelineError."""

    def must_probe(self, budget: rest.RequestBudget) -> bool:
        """Whether a harmless request must come first. Raises AsteriskUnreachable while the breaker is open."""


class Ari:
    """One step's requests to an Asterisk.

    `together` sends several at the same time. Every other method sends one and raises its error: AsteriskUnreachable
    without a usable answer, AsteriskRefused for a 4xx. That a resource is already gone is an outcome, never an error.

    Args:
        doubts: Tells of a channel whether a 404 is compared with the app's list, which shows none that is gone
            (measured, 22.10). One that the list shows is no proof: AnswerDoubtful.
    """

    def __init__(
        self, client: Client, budget: rest.RequestBudget, *, doubts: Callable[[str], bool] = lambda _channel: False
    ) -> None:
        self._client = client
        self._budget = budget
        self._doubts = doubts

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

    def together(self, *requests: Request[_T]) -> list[_T | errors.PipelineError]:
        """Make several requests at the same time, each once; return each one's result or error, in the order given."""
        answers = self._checked(requests, self._client.request_all(self._budget, requests))
        return [_outcome(request, answer) for request, answer in zip(requests, answers, strict=True)]

    def _checked(self, requests: Sequence[Request[Any]], answers: list[Any]) -> list[Any]:
        """Return the answers, without each 404 for a channel that the app's list shows."""
        doubtful = {
            number: request.channel
            for number, (request, answer) in enumerate(zip(requests, answers, strict=True))
            if request.channel and _is_gone(answer) and self._doubts(request.channel)
        }
        if not doubtful:
            return answers
        try:
            application = self._application_after(requests, answers, doubtful.values())
        except errors.PipelineError as exc:
            reason = f"404 Channel not found, and whether the app lists it is unknown: {exc}"
            listed = frozenset(doubtful.values())
        else:
            reason = "404 Channel not found, though the app lists it: does a proxy change paths? arictl doctor tells"
            listed = application.channels if application is not None else frozenset()
        lost = {number for number, channel in doubtful.items() if channel in listed}
        doubt = errors.AnswerDoubtful(reason, may_have_acted=False)
        return [doubt if number in lost else answer for number, answer in enumerate(answers)]

    def _application_after(
        self, requests: Sequence[Request[Any]], answers: list[Any], doubtful: Collection[str]
    ) -> Application | None:
        """Return the app as the same round has shown it, if it shows none of these channels; or else ask for it."""
        for request, answer in zip(requests, answers, strict=True):
            if request.answer is AnswerKind.APP:
                seen = _outcome(request, answer)
                if seen is None or (isinstance(seen, Application) and seen.channels.isdisjoint(doubtful)):
                    return seen
        return self.application()

    def ask(self, request: Request[_T]) -> _T:
        """Make one request, once; return its result."""
        (result,) = self.together(request)
        if isinstance(result, errors.PipelineError):
            raise result
        return result

    def channel(self, channel_id: str) -> Channel | None:
        """Return the channel; None if there is none with that id."""
        return self.ask(ari_requests.channel(channel_id))

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
            # Without the brackets a number with a letter is taken for a name, and there is no number (measured, 22.10).
            query["callerId"] = f"<{caller_id}>"
        if endpoint.startswith("Local/"):
            # Asterisk would use 192 kHz otherwise, at 3 % of a core for each call (measured, 22.10).
            query["formats"] = "ulaw"
        request = Request(
            method="POST", path=("channels",), query=query, read=ari_requests.no_result, outcomes={409: None}
        )
        try:
            self.ask(request)
        except errors.AsteriskUnreachable as exc:
            if str(exc) == f"answered 500 {rest.NOT_DIALLED}":
                raise errors.AsteriskRefused(500, rest.NOT_DIALLED) from exc
            raise

    def bridge(self, bridge_id: str) -> Bridge | None:
        """Return the bridge; None if there is none with that id."""
        return self.ask(ari_requests.bridge(bridge_id))

    def bridges(self) -> list[Bridge]:
        """Return every bridge of this Asterisk, ours or not."""
        document = self._get("bridges", answer=AnswerKind.LIST)
        if not isinstance(document, list):
            raise errors.AsteriskUnreachable("the answer is not a list of bridges", may_have_acted=False)
        return [ari_requests.parsed_bridge(entry) for entry in document]

    def answer(self, channel_id: str) -> bool:
        """Answer a channel; twice is harmless. False if the channel is gone."""
        return self.ask(ari_requests.answer(channel_id))

    def hang_up(self, channel_id: str, cause: int | None = None) -> bool:
        """Hang up a channel. False if it was gone; True if it was told to hang up, which takes it a moment."""
        return self.ask(ari_requests.hang_up(channel_id, cause))

    def remove_bridge(self, bridge_id: str) -> bool:
        """Remove a bridge, but not its channels. False if it was gone."""
        return self.ask(ari_requests.remove_bridge(bridge_id))

    def application(self) -> Application | None:
        """Return our app; None if Asterisk no longer knows it: it has neither an event socket nor a channel."""
        return self.ask(application_request(self.app))

    def channel_and_place(self, channel_id: str) -> tuple[Channel | None, bool]:
        """Return the channel, None if there is none with that id, and whether it is in our app now.

        It is if the app lists it and it is in Stasis. The list alone does not tell: an app lists a leg that was
        originated for it wherever that goes. Nor does the channel: it shows the app that it entered by Stasis(), and
        may have been moved.
        """
        results: list[Any] = self.together(*place_requests(channel_id, self.app))
        for result in results:
            if isinstance(result, errors.PipelineError):
                raise result
        leg, application = results
        return leg, is_in_app(leg, application)

    def apps_of(self, channel_id: str) -> frozenset[str]:
        """Return the apps that list a channel: the one it is in, the one it was made for, those that watch it."""
        document = self._get("applications", answer=AnswerKind.LIST)
        if not isinstance(document, list):
            raise errors.AsteriskUnreachable("the answer is not a list of applications", may_have_acted=False)
        entries = [entry for entry in document if isinstance(entry, dict)]
        return frozenset(
            plain(entry.get("name")) for entry in entries if channel_id in ari_requests.listed(entry, "channel_ids")
        )

    def set_event_filter(self, types: Sequence[str]) -> None:
        """Let only these events through. The filter is lost with the app, so it is set after each connect."""
        path = ("applications", self.app, "eventFilter")
        body = {"allowed": [{"type": name} for name in types]}
        self.ask(Request(method="PUT", path=path, body=body, read=ari_requests.no_result))

    def version(self) -> str:
        """Return Asterisk's version as it writes it: `22.10.1+dfsg`, `certified-20.7-cert3`, `GIT-22-abc`."""
        document = self._get("asterisk", "info")
        system = document.get("system") if isinstance(document, dict) else None
        return plain(system.get("version", "")) if isinstance(system, dict) else ""

    def modules(self) -> dict[str, str]:
        """Return name, without `.so` → status (`Running`), of every loaded module."""
        document = self._get("asterisk", "modules", answer=AnswerKind.LIST)
        if not isinstance(document, list):
            raise errors.AsteriskUnreachable("the answer is not a list of modules", may_have_acted=False)
        entries = [entry for entry in document if isinstance(entry, dict)]
        return {plain(entry.get("name")).removesuffix(".so"): plain(entry.get("status")) for entry in entries}

    def websocket_client(self, name: str) -> WebsocketClient | None:
        """Return a client of websocket_client.conf; None if there is none with that name (measured, 22.10)."""
        try:
            document = self._get("asterisk", "config", "dynamic", "res_websocket_client", "websocket_client", name)
        except errors.AsteriskUnreachable as exc:
            message = plain(f"Object with id '{name}' not found")
            if str(exc) == f"answered 404 {message}":
                return None
            raise
        entries = [entry for entry in document if isinstance(entry, dict)] if isinstance(document, list) else []
        # The other attributes, a user and a password among them, are dropped here.
        pairs = {plain(entry.get("attribute")): entry.get("value") for entry in entries}
        wanted = ("uri", "protocols", "connection_type")
        return WebsocketClient(**{key: plain(pairs.get(key) or "") for key in wanted})

    def _get(self, *path: str, answer: AnswerKind = AnswerKind.ONE) -> Any:
        return self.ask(Request(method="GET", path=path, read=lambda document: document, answer=answer))


def _is_gone(answer: Any) -> bool:
    return isinstance(answer, errors.AsteriskRefused) and answer.status == 404


def _outcome(request: Request[_T], answer: Any) -> _T | errors.PipelineError:
    """Return what an answer, or the lack of one, means for this request."""
    if isinstance(answer, errors.AsteriskRefused) and answer.status in request.outcomes:
        return request.outcomes[answer.status]
    if isinstance(answer, errors.PipelineError):
        return answer
    try:
        return request.read(answer)
    except errors.PipelineError as exc:
        return exc


def application_request(app: str) -> Request[Application | None]:
    """Ask for an app; the result is None if Asterisk does not know it."""
    path = ("applications", app)
    return Request(method="GET", path=path, read=_parsed_application, outcomes={404: None}, answer=AnswerKind.APP)


def place_requests(channel_id: str, app: str) -> Sequence[Request[Any]]:
    """Ask for a channel, and for the app that it may be in."""
    return ari_requests.channel(channel_id), application_request(app)


def is_in_app(leg: object, application: object) -> bool:
    """Return whether a channel is in an app, by the results of `place_requests`; False if a look failed."""
    return (
        isinstance(leg, Channel)
        and leg.is_in_stasis
        and isinstance(application, Application)
        and leg.id in application.channels
    )


def _parsed_application(document: Any) -> Application:
    if not isinstance(document, dict):
        raise errors.AsteriskUnreachable("the answer is not an application", may_have_acted=False)
    allowed = ari_requests.listed(document, "events_allowed")
    return Application(
        channels=ari_requests.listed_ids(document, "channel_ids"),
        allowed=frozenset(plain(entry.get("type")) for entry in allowed if isinstance(entry, dict)),
    )

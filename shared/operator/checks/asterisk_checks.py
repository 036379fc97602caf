"""One Asterisk, checked over ARI: nothing on it is changed, and no request takes longer than a few seconds."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator

from shared import errors
from shared.asterisk import ari, circuit_breaker, rest, tcp_connector
from shared.asterisk.endpoint import Configuration
from shared.operator.checks import media_checks, version_checks
from shared.operator.checks.findings import Finding, ok, warning, wrong
from shared.storage import app_holders

_CONNECT_SECONDS = 2.0
_READ_SECONDS = 3.0
#: For all requests to one Asterisk together.
_SECONDS = 12.0
MODULES = (
    "chan_websocket",
    "res_websocket_client",
    "res_ari_channels",
    "res_ari_bridges",
    "res_ari_applications",
    "res_ari_events",
    "res_http_websocket",
    "app_stasis",
    "bridge_simple",
)


#: A PBX may choose such ids. What decodes a path and encodes it again, or shortens it, changes one of these characters.
_ODD_ID = 'doctor+\u00e9 /../x//y%2F;,?#"'


class TimedBudget:
    """Bounds the requests to one Asterisk."""

    def __init__(self, seconds: float = _SECONDS) -> None:
        self._ends_at = time.monotonic() + seconds

    def seconds_left(self) -> float:
        left = self._ends_at - time.monotonic()
        if left <= 0:
            raise errors.TransientError("no answer in time")
        return left

    def record_request(self, request: rest.RequestRecord) -> None:
        """Discard it: the doctor keeps no timeline."""


def check(
    configuration: Configuration, client: str | None, *, socket_state: str, connector: tcp_connector.TcpConnector
) -> list[Finding]:
    """Check one Asterisk.

    Args:
        client: The connection's websocket client.
        socket_state: The state of our event socket, as its listener last reported it.
    """
    try:
        asterisk = rest.RestClient(
            configuration,
            requests_at_once=2,
            connect_seconds=_CONNECT_SECONDS,
            read_seconds=_READ_SECONDS,
            connector=connector,
            breaker=circuit_breaker.AlwaysClosed(),
        )
    except errors.InvalidConfiguration as exc:
        return [wrong("certificates", str(exc), "arictl connection add --replace --ca-bundle FILE")]
    found: list[Finding] = []
    try:
        # The findings from before an error are kept.
        found.extend(_examine(ari.Ari(asterisk, TimedBudget()), configuration, client, socket_state, found))
    except (errors.TransientError, errors.AsteriskRefused) as exc:
        found.append(wrong("Asterisk", f"{exc}", "is it overloaded, or has it just stopped? Run this again"))
    finally:
        asterisk.close()
    return found


def _examine(
    there: ari.Ari, configuration: Configuration, client: str | None, socket_state: str, found: list[Finding]
) -> list[Finding]:
    # First, as it needs only modules that every call needs.
    try:
        application = there.application()
    except errors.EndpointRefused as exc:
        return [guarded(str(exc), configuration)]
    except errors.AsteriskUnreachable as exc:
        return [unreachable(str(exc), configuration)]
    found += [ok("reachable", configuration.endpoint), ok("credentials", f"ARI user {configuration.user} is accepted")]
    found += _writing(there)
    found += _path(there)
    found.append(_app(application, configuration.app, socket_state))
    try:
        found += version_checks.judge_version(there.version())
    except errors.AsteriskUnreachable as exc:
        todo = "load res_ari_asterisk.so, or check by hand: asterisk -rx 'core show version'"
        return [warning("version, modules, websocket client", f"cannot be checked: {exc}", todo)]
    try:
        found += judge_modules(there.modules())
    except errors.AsteriskUnreachable as exc:
        todo = "check by hand: asterisk -rx 'module show like websocket', and like ari, app_stasis, bridge_simple"
        found.append(warning("modules", f"cannot be checked: {exc}", todo))
    return list(media_checks.check(there, client))


def guarded(reason: str, configuration: Configuration) -> Finding:
    """Return the finding for an endpoint that the guard refuses."""
    return wrong(
        "endpoint guard",
        f"{configuration.endpoint}: {reason}",
        "correct the endpoint; or, if the Asterisk really is there, add it to ENDPOINT_ALLOW (or remove it from"
        " ENDPOINT_DENY) of every process and restart them. Some addresses are always refused",
    )


def unreachable(reason: str, configuration: Configuration) -> Finding:
    """Return the finding for an Asterisk without a usable answer, by the reason."""
    what, todo = (
        "reachable",
        (
            "from this machine: is Asterisk running, is http.conf enabled=yes with this bindaddr and bindport, does a"
            " firewall allow it? asterisk -rx 'http show status'"
        ),
    )
    if reason.startswith("answered 401"):
        what, todo = (
            "credentials",
            (
                f"ari.conf needs [{configuration.user}] type=user with the configuration's password (a semicolon"
                " is written as \\;), then: asterisk -rx 'module reload res_ari.so'"
            ),
        )
    elif reason.startswith("answered 403"):
        what, todo = "credentials", "allow this machine in the user's acl in ari.conf, or in the proxy in front of it"
    elif reason.startswith("answered 404"):
        todo = (
            "a server answers, but not ARI: has http.conf a prefix that the endpoint lacks (or the reverse),"
            " is res_ari_applications.so loaded? asterisk -rx 'http show status' shows the prefix"
        )
    elif "TLS" in reason or "certificate" in reason:
        todo = "for a private authority, give its certificate: arictl connection add --replace --ca-bundle FILE"
    elif reason.startswith("answered"):
        todo = "look at the log of the Asterisk, and of a proxy in front of it"
    return wrong(what, f"{configuration.endpoint}: {reason}", todo)


def _writing(there: ari.Ari) -> Iterator[Finding]:
    """Check whether the user may write: requests about a channel that cannot exist change nothing."""
    nothing = f"doctor-{uuid.uuid4().hex}"
    for method, ask in (("POST", there.answer), ("DELETE", there.hang_up)):
        try:
            ask(nothing)
        except errors.AsteriskRefused as exc:
            yield wrong("rights", f"{method}: {exc}", "let a proxy in front of it pass GET, POST, PUT and DELETE")
            return
        except errors.AsteriskUnreachable as exc:
            if str(exc).startswith("answered 403"):
                yield wrong(
                    "rights",
                    f"the ARI user is read-only: {method} {exc}",
                    "set read_only=no for it in ari.conf, then: asterisk -rx 'module reload res_ari.so'; or does a"
                    " proxy in front of it deny this method?",
                )
            elif str(exc).startswith("answered 404"):
                todo = "load res_ari_channels.so: asterisk -rx 'module load res_ari_channels.so'"
                yield wrong("channels", str(exc), todo)
            else:
                raise
            return
    yield ok("rights", "the ARI user may write")


def _path(there: ari.Ari) -> Iterator[Finding]:
    """Check whether an id arrives as it was sent: the answer about a websocket client that is not there repeats it."""
    try:
        there.websocket_client(_ODD_ID)
    except errors.AsteriskRefused as exc:
        changed = str(exc)
    except errors.AsteriskUnreachable as exc:
        changed = str(exc)
        if "configClass" in changed:
            return  # Without the module nothing repeats it, which is a finding of the websocket client.
    else:
        yield ok("paths", "an id with any characters arrives as it was sent")
        return
    yield wrong(
        "paths",
        f"an id with special characters does not arrive as it was sent: {changed}",
        "let the proxy in front of it pass paths as they are: 'Your Asterisk behind a proxy' in"
        " docs/connecting-an-asterisk.md",
    )


def _app(application: ari.Application | None, app: str, socket_state: str) -> Finding:
    """Compare the state of our event socket with whether Asterisk knows the app."""
    what = "Stasis app"
    if socket_state == app_holders.OCCUPIED and application is not None:
        return wrong(
            what,
            f"{app} is held by another process, and was never ours",
            "the platform's own, or another installation? To switch from it: docs/switching.md; arictl connection"
            " take-over",
        )
    if socket_state in ("replaced", "parked"):
        return wrong(
            what,
            f"{app} was taken over by a competing client",
            "find the other client of this user and stop it, or give each its own app: asterisk -rx 'ari show apps'."
            " Our listener reclaims the app once; after that: arictl connection unpark",
        )
    if socket_state == "connected":
        if application is not None:
            return ok(what, f"{app} is connected to our listener")
        return wrong(
            what,
            f"our listener reports {app} connected, Asterisk does not know it",
            "wait ten seconds and run this again; if it persists, restart the listener",
        )
    if application is not None:
        return wrong(
            what,
            f"Asterisk knows {app}, but our event socket is {socket_state}: another client may be connected,"
            " or calls of a lost socket still run",
            "asterisk -rx 'ari show apps': does a listener of another installation use the same app?",
        )
    return wrong(
        what,
        f"no client is connected to {app}: our event socket is {socket_state}",
        "are a scheduler and a listener running (above)? arictl connection list shows the reason",
    )


def judge_modules(running: dict[str, str]) -> list[Finding]:
    """Check whether every module that a call needs is running."""
    lacking = [name for name in MODULES if running.get(name) != "Running"]
    if not lacking:
        return [ok("modules", f"all {len(MODULES)} are running")]
    named = ", ".join(f"{name} ({running.get(name, 'not loaded')})" for name in lacking)
    commands = "; ".join(f"asterisk -rx 'module load {name}.so'" for name in lacking[:3])
    return [wrong("modules", named, f"add them to modules.conf, and load them now: {commands}")]

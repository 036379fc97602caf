"""One Asterisk, as its ARI shows it: nothing is changed on it, and no request lasts longer than a few seconds."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator

from arictl.checks import media
from arictl.checks.findings import Finding, ok, warning, wrong
from shared import errors
from shared.asterisk import ari, circuit_breaker, rest, tcp_connector
from shared.asterisk.endpoint import Configuration

_CONNECT_SECONDS = 2.0
_READ_SECONDS = 3.0
#: For all of one Asterisk's requests together.
_SECONDS = 12.0
#: Branch → the first version with websocket external media.
_FIRST = {20: 18, 22: 8, 23: 2}
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


class TimedBudget:
    """Bounds the requests to one Asterisk."""

    def __init__(self, seconds: float = _SECONDS) -> None:
        self._ends_at = time.monotonic() + seconds

    def seconds_left(self) -> float:
        left = self._ends_at - time.monotonic()
        if left <= 0:
            raise errors.TransientError("it takes too long to answer")
        return left

    def record_request(self, request: rest.RequestRecord) -> None:
        """Nobody keeps what a doctor asked."""


def check(
    configuration: Configuration, client: str | None, *, socket_state: str, connector: tcp_connector.TcpConnector
) -> list[Finding]:
    """What one Asterisk is like.

    Args:
        client: The connection's ws_client_name.
        socket_state: Of our event socket, as its listener last reported.
    """
    target = rest.Target(
        endpoint=configuration.endpoint,
        app=configuration.app,
        user=configuration.user,
        password=configuration.password,
        ca_bundle=configuration.ca_bundle,
    )
    try:
        asterisk = rest.RestClient(
            target,
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
        # What was found before it fell silent is kept.
        found.extend(_look(ari.Ari(asterisk, TimedBudget()), configuration, client, socket_state, found))
    except (errors.TransientError, errors.AsteriskRefused) as exc:
        found.append(wrong("Asterisk", f"{exc}", "is it overloaded, or did it just go? Run this again"))
    finally:
        asterisk.close()
    return found


def _look(
    there: ari.Ari, configuration: Configuration, client: str | None, socket_state: str, found: list[Finding]
) -> list[Finding]:
    # Asked for first: it needs no module but those every call needs.
    try:
        application = there.application()
    except errors.EndpointRefused as exc:
        return [guarded(str(exc), configuration)]
    except errors.AsteriskUnreachable as exc:
        return [unreachable(str(exc), configuration)]
    found += [ok("reachable", configuration.endpoint), ok("credentials", f"ARI user {configuration.user} is let in")]
    found += _writing(there)
    found.append(_app(application, configuration.app, socket_state))
    try:
        found.append(judge_version(there.version()))
    except errors.AsteriskUnreachable as exc:
        todo = "load res_ari_asterisk.so to let the doctor see, or compare by hand: asterisk -rx 'core show version'"
        return [warning("version, modules, websocket client", f"cannot be told: {exc}", todo)]
    try:
        found += judge_modules(there.modules())
    except errors.AsteriskUnreachable as exc:
        todo = "look by hand: asterisk -rx 'module show like websocket', and like ari, app_stasis, bridge_simple"
        found.append(warning("modules", f"cannot be told: {exc}", todo))
    return list(media.check(there, client))


def guarded(reason: str, configuration: Configuration) -> Finding:
    """What to do about an endpoint that our own guard does not let us connect to."""
    return wrong(
        "endpoint guard",
        f"{configuration.endpoint}: {reason}",
        "correct ari_endpoint; or, should this Asterisk really be there, set ENDPOINT_ALLOW (or take it out of"
        " ENDPOINT_DENY) for every process and restart them. Some addresses are refused whatever the settings say",
    )


def unreachable(reason: str, configuration: Configuration) -> Finding:
    """What to do about an Asterisk that gives no usable answer, by what it said."""
    what, todo = (
        "reachable",
        (
            "from this machine: is Asterisk running, is http.conf enabled=yes with this bindaddr and bindport, does a"
            " firewall let us through? asterisk -rx 'http show status'"
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
        what, todo = "credentials", "an acl of this user in ari.conf, or a proxy in front, refuses this machine"
    elif reason.startswith("answered 404"):
        todo = (
            "something answers, but not ARI: has http.conf a prefix that ari_endpoint lacks (or the other way round),"
            " is res_ari_applications.so loaded? asterisk -rx 'http show status' shows the prefix"
        )
    elif "TLS" in reason or "certificate" in reason:
        todo = "a private authority's certificates are given by arictl connection add --replace --ca-bundle FILE"
    elif reason.startswith("answered"):
        todo = "Asterisk, or a proxy in front of it, is in trouble: look at its log"
    return wrong(what, f"{configuration.endpoint}: {reason}", todo)


def _writing(there: ari.Ari) -> Iterator[Finding]:
    """Whether the user may act: asks to answer a channel that cannot exist, which changes nothing."""
    try:
        there.answer(f"doctor-{uuid.uuid4().hex}")
    except errors.AsteriskUnreachable as exc:
        if str(exc).startswith("answered 403"):
            yield wrong(
                "rights",
                "the ARI user may only read",
                "set read_only=no for it in ari.conf, then: asterisk -rx 'module reload res_ari.so'",
            )
        elif str(exc).startswith("answered 404"):
            yield wrong(
                "channels", str(exc), "load res_ari_channels.so: asterisk -rx 'module load res_ari_channels.so'"
            )
        else:
            raise
    else:
        yield ok("rights", "the ARI user may act")


def _app(application: ari.Application | None, app: str, socket_state: str) -> Finding:
    """Our socket's state, held against whether Asterisk knows the app."""
    what = "Stasis app"
    if socket_state in ("replaced", "parked"):
        return wrong(
            what,
            f"{app} was taken by another event socket",
            "find who else connects as this user and stop it, or give each an app of its own:"
            " asterisk -rx 'ari show apps'; ours takes it back once, after that: arictl connection unpark",
        )
    if socket_state == "connected":
        if application is not None:
            return ok(what, f"{app} is held by our listener")
        return wrong(
            what,
            f"our listener reports {app} connected, Asterisk does not know it",
            "wait ten seconds and look again; then restart the listener",
        )
    if application is not None:
        return wrong(
            what,
            f"{app} is known to Asterisk, but our event socket is {socket_state}: somebody else may hold"
            " it, or calls of a lost socket still run",
            "asterisk -rx 'ari show apps'; a listener of another installation on the same app?",
        )
    return wrong(
        what,
        f"nobody holds {app}: our event socket is {socket_state}",
        "does a scheduler lead and a listener live (above)? arictl connection list says what is wrong",
    )


def judge_version(version: str) -> Finding:
    """Whether an Asterisk of this version can do external media over websocket."""
    match = re.search(r"(?:^|certified-|GIT-)(\d+)(?:\.(\d+))?", version)
    if match is None:
        return warning("version", f"{version or 'not told'}: cannot be told", "20.18, 22.8, 23.2 or newer is needed")
    major = int(match[1])
    if match[2] is None:
        return warning("version", f"{version}: a build of branch {major}", "see that it is 20.18, 22.8, 23.2 or newer")
    if major > max(_FIRST) or (major in _FIRST and int(match[2]) >= _FIRST[major]):
        return ok("version", version)
    return wrong("version", version, "upgrade to 20.18, 22.8, 23.2 or newer: external media over websocket needs it")


def judge_modules(running: dict[str, str]) -> list[Finding]:
    """Whether every module a call needs runs."""
    lacking = [name for name in MODULES if running.get(name) != "Running"]
    if not lacking:
        return [ok("modules", f"all {len(MODULES)} run")]
    named = ", ".join(f"{name} ({running.get(name, 'not loaded')})" for name in lacking)
    commands = "; ".join(f"asterisk -rx 'module load {name}.so'" for name in lacking[:3])
    return [wrong("modules", named, f"add them to modules.conf, and now: {commands}")]

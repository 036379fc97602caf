"""The control client: what a test orders of a simulated Asterisk and what it sees of it, over `/simulator/`.

Synchronous, and safe to use from several threads: each call is a connection of its own. It works the same on a
simulator in this process and in another one.
"""

import contextlib
import http.client
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote, urlsplit

from simulator import errors
from simulator.handles import Fault, Gate

When = Literal["before", "after"]
JSONObject = dict[str, Any]

_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class LoggedRequest:
    """A request to `/ari`: `path` is below `/ari` and decoded, `started_at` is time.monotonic().

    `status` is None while it is served and 0 when its connection was cut; 101 is an event socket that is open.
    """

    method: str
    path: str
    query: dict[str, str]
    started_at: float
    status: int | None
    ms: float | None


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What a leg heard through bridges: for a caller's leg the agent, for a media leg the caller.

    `dominant_hz` is of the last 80 ms, to the nearest 50 Hz; None is silence. `gaps` counts how often the leg was
    added to the bridge it was in already.
    """

    heard_bytes: int
    dominant_hz: int | None
    gaps: int


class Control:
    """Orders for the simulated Asterisk at `http://host:port` (a path behind it is ignored)."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.hostname is None or parts.port is None:
            raise errors.ControlError(f"not the address of a simulator: {url}")
        self._host, self._port = parts.hostname, parts.port

    def order(self, method: str, path: str, body: object = None, *, timeout: float = _TIMEOUT_SECONDS) -> Any:
        """Sends one order under `/simulator` and returns what was answered.

        Raises:
            errors.ControlError: it was refused, or nobody answered.
        """
        with contextlib.closing(http.client.HTTPConnection(self._host, self._port, timeout=timeout)) as connection:
            try:
                connection.request(method, f"/simulator{path}", None if body is None else json.dumps(body))
                response = connection.getresponse()
                text = response.read()
            except (OSError, http.client.HTTPException) as exc:
                raise errors.ControlError(f"no answer to {method} {path}: {exc!r}") from exc
        if response.status >= 400:
            raise errors.ControlError(f"{method} {path}: {response.status} {text.decode(errors='replace')}")
        return json.loads(text) if text else None

    # -- callers -------------------------------------------------------------------------------------------------------

    def dial(
        self,
        app: str,
        *,
        caller: str = "+15551234",
        called: str = "100",
        args: Sequence[str] = (),
        channel_id: str | None = None,
        answered: bool = False,
        dialplan: Literal["recommended", "plain"] = "recommended",
        hang_up_after: float | None = None,
        tone_hz: int | None = None,
    ) -> str:
        """Lets a call come in and returns its channel id; it enters Stasis(app) by itself.

        With no socket for the app, the recommended dialplan rings and tries again for 5 s, the plain one hangs up.
        `tone_hz` (a multiple of 50) is what the caller says.
        """
        order = {
            "app": app,
            "caller": caller,
            "called": called,
            "args": list(args),
            "channel_id": channel_id,
            "answered": answered,
            "dialplan": dialplan,
            "hang_up_after": hang_up_after,
            "tone_hz": tone_hz,
        }
        return str(self.order("POST", "/callers", order)["id"])

    def hang_up(self, channel_id: str, cause: int = 16) -> None:
        """The party of a channel hangs up (for a media leg: its socket closes)."""
        self.order("POST", f"/channels/{quote(channel_id, safe='')}/hangUp", {"cause": cause})

    def continue_in_dialplan(self, channel_id: str) -> None:
        """A channel leaves Stasis and lives on in the dialplan."""
        self.order("POST", f"/channels/{quote(channel_id, safe='')}/continue")

    def reenter(self, channel_id: str, app: str, args: Sequence[str] = ()) -> None:
        """A channel in the dialplan comes (back) into Stasis."""
        self.order("POST", f"/channels/{quote(channel_id, safe='')}/reenter", {"app": app, "args": list(args)})

    def pick_up(self, channel_id: str, *, caller: str = "+15551234", new_channel_id: str | None = None) -> str:
        """Somebody else's channel takes the place of one in Stasis that is in no bridge; returns its id."""
        order = {"caller": caller, "channel_id": new_channel_id}
        return str(self.order("POST", f"/channels/{quote(channel_id, safe='')}/pickUp", order)["id"])

    # -- faults --------------------------------------------------------------------------------------------------------

    def hold(self, method: str, path_pattern: str, when: When = "before") -> Gate:
        """Lets matching requests wait before or after their effect. `*` in the pattern is any text, slashes too."""
        order = {"method": method, "path": path_pattern, "when": when}
        return Gate(self, self.order("POST", "/gates", order)["id"])

    def fault(
        self,
        method: str,
        path_pattern: str,
        when: When = "before",
        *,
        delay_seconds: float = 0.0,
        status: int | None = None,
        message: str = "Simulated fault",
        abort: bool = False,
        times: int | None = None,
        probability: float = 1.0,
    ) -> Fault:
        """Delays matching requests, answers them with another status, or cuts their connection.

        `before` with a status or an abort: the request takes no effect. `after`: it does.
        """
        order = {
            "method": method,
            "path": path_pattern,
            "when": when,
            "delay_seconds": delay_seconds,
            "status": status,
            "message": message,
            "abort": abort,
            "times": times,
            "probability": probability,
        }
        return Fault(self, self.order("POST", "/faults", order)["id"])

    def cut_event_sockets(self, app: str | None = None, *, silently: bool = False) -> int:
        """Cuts event sockets without a close frame; silently: they stay open but go dead. Returns how many."""
        return int(self.order("POST", "/sockets/cut", {"app": app, "silently": silently})["cut"])

    def drop_events(self, types: Sequence[str], times: int | None = None) -> None:
        """Loses events of these types, so many of them or all from now on."""
        self.order("POST", "/drops", {"types": list(types), "times": times})

    def delay_media(self, seconds: float) -> None:
        """Media legs begin to connect this much later; 0 ends it."""
        self.order("PUT", "/media", {"delay_seconds": seconds})

    def refuse_media(self, refuse: bool = True) -> None:
        """No media leg can connect any more; False ends it."""
        self.order("PUT", "/media", {"refuse": refuse})

    def clear(self) -> None:
        """Ends all faults, gates, drops and media troubles."""
        self.order("POST", "/clear")

    def restart(self, *, down_seconds: float = 0.0) -> None:
        """Everything vanishes, sockets are cut; Asterisk is back after `down_seconds`. Also ends a crash."""
        self.order("POST", "/restart", {"down_seconds": down_seconds})

    def crash(self) -> None:
        """Everything vanishes, sockets are cut, and each connection is cut until `restart()`."""
        self.order("POST", "/crash")

    # -- a look inside -------------------------------------------------------------------------------------------------

    def channels(self) -> list[JSONObject]:
        """All channels as REST shows them, with `kind` (caller, originated, media), `app`, `bridge_id`, `gaps`."""
        return list(self.order("GET", "/channels"))

    def channel(self, channel_id: str) -> JSONObject | None:
        """One channel, or None."""
        return next((channel for channel in self.channels() if channel["id"] == channel_id), None)

    def bridges(self) -> list[JSONObject]:
        """All bridges as REST shows them."""
        return list(self.order("GET", "/bridges"))

    def requests(self, method: str | None = None, path: str | None = None) -> list[LoggedRequest]:
        """The requests to `/ari` so far, oldest first."""
        found = [LoggedRequest(**logged) for logged in self.order("GET", "/requests")]
        return [r for r in found if method in (None, r.method) and path in (None, r.path)]

    def event_log(self, kind: str | None = None) -> list[JSONObject]:
        """`{"delivered": bool, "event": {...}}` for each event that passed its app's filter, oldest first."""
        return [entry for entry in self.order("GET", "/events") if kind in (None, entry["event"]["type"])]

    def sockets(self, app: str) -> list[JSONObject]:
        """Open event sockets of an app, oldest first: `is_hearing` (the newest only) and `opened_at`."""
        return list(self.order("GET", f"/applications/{quote(app, safe='')}/sockets"))

    def heard(self, channel_id: str) -> Heard:
        """What a leg has heard, also after its end.

        Raises:
            errors.ControlError: there never was such a leg.
        """
        return Heard(**self.order("GET", f"/channels/{quote(channel_id, safe='')}/heard"))

    @property
    def crashes(self) -> int:
        """How often it has crashed."""
        return int(self.order("GET", "/status")["crashes"])

    @property
    def is_running(self) -> bool:
        """Whether it answers."""
        return bool(self.order("GET", "/status")["is_running"])

    @contextlib.contextmanager
    def media_refused(self) -> Iterator[None]:
        """Media legs cannot connect within the `with` block."""
        self.refuse_media(True)
        try:
            yield
        finally:
            self.refuse_media(False)

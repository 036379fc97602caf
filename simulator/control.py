"""The control client: lets a test control and inspect a simulated Asterisk, over `/simulator/`.

Synchronous and thread-safe: each method call opens its own connection. It works the same on a simulator in this process
and in another one.
"""

import contextlib
import http.client
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote, urlsplit

from simulator import errors
from simulator.handles import Breakpoint, Fault

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
    """The audio a leg heard through bridges: a caller's leg hears the agent, a media leg the caller.

    `dominant_hz` is the strongest frequency of the last 80 ms, to the nearest 50 Hz; None is silence. `gaps` counts how
    often the leg was added to the bridge it was in already.
    """

    heard_bytes: int
    dominant_hz: int | None
    gaps: int


class Control:
    """Controls the simulated Asterisk at `http://host:port` (a path after it is ignored)."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.hostname is None or parts.port is None:
            raise errors.ControlError(f"not the address of a simulator: {url}")
        self._host, self._port = parts.hostname, parts.port

    def send(self, method: str, path: str, body: object = None, *, timeout: float = _TIMEOUT_SECONDS) -> Any:
        """Sends a control request to a path under `/simulator` and returns the answer.

        Raises:
            errors.ControlError: it was refused, or not answered.
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
        """Starts an incoming call, which enters Stasis(app), and returns its channel id.

        While the app has no event socket, the recommended dialplan rings and tries again for 5 s; the plain one hangs
        up. The caller says a tone of `tone_hz`, a multiple of 50.
        """
        body = {
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
        return str(self.send("POST", "/callers", body)["id"])

    def hang_up(self, channel_id: str, cause: int = 16) -> None:
        """Makes the party of a channel hang up (the agent of a media leg: close the socket)."""
        self.send("POST", f"/channels/{quote(channel_id, safe='')}/hangUp", {"cause": cause})

    def continue_in_dialplan(self, channel_id: str) -> None:
        """Makes a channel leave Stasis and wait in the dialplan."""
        self.send("POST", f"/channels/{quote(channel_id, safe='')}/continue")

    def reenter(self, channel_id: str, app: str, args: Sequence[str] = ()) -> None:
        """Makes a channel in the dialplan enter Stasis (again)."""
        self.send("POST", f"/channels/{quote(channel_id, safe='')}/reenter", {"app": app, "args": list(args)})

    def pick_up(self, channel_id: str, *, caller: str = "+15551234", new_channel_id: str | None = None) -> str:
        """Replaces a channel that is in Stasis and in no bridge by a new one, and returns the new one's id."""
        body = {"caller": caller, "channel_id": new_channel_id}
        return str(self.send("POST", f"/channels/{quote(channel_id, safe='')}/pickUp", body)["id"])

    def transfer(self, channel_id: str, *, extension: str = "1001", new_channel_id: str | None = None) -> str:
        """Makes the party of a channel in a bridge transfer the others; returns the channel that takes its place."""
        body = {"extension": extension, "channel_id": new_channel_id}
        return str(self.send("POST", f"/channels/{quote(channel_id, safe='')}/transfer", body)["id"])

    # -- faults --------------------------------------------------------------------------------------------------------

    def hold(self, method: str, path_pattern: str, when: When = "before") -> Breakpoint:
        """Stops matching requests before or after they take effect. `*` in the pattern is any text, slashes too."""
        body = {"method": method, "path": path_pattern, "when": when}
        return Breakpoint(self, self.send("POST", "/breakpoints", body)["id"])

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

        With a status or an abort, a request takes effect if `when` is `after`, and none if it is `before`.
        """
        body = {
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
        return Fault(self, self.send("POST", "/faults", body)["id"])

    def cut_event_sockets(self, app: str | None = None, *, silently: bool = False) -> int:
        """Cuts event sockets without a close frame (`silently`: they stay open but go dead) and returns how many."""
        return int(self.send("POST", "/sockets/cut", {"app": app, "silently": silently})["cut"])

    def drop_events(self, types: Sequence[str], times: int | None = None) -> None:
        """Drops the next `times` events of these types; all of them if None."""
        self.send("POST", "/drops", {"types": list(types), "times": times})

    def delay_media(self, seconds: float) -> None:
        """Delays the connecting of media legs; 0 ends the delay."""
        self.send("PUT", "/media", {"delay_seconds": seconds})

    def refuse_media(self, refuse: bool = True) -> None:
        """Makes every media leg fail to connect; False ends it."""
        self.send("PUT", "/media", {"refuse": refuse})

    def set_clock(self, ahead_seconds: float) -> None:
        """Sets the clock of Asterisk's machine ahead, or behind if negative; 0 sets it right."""
        self.send("PUT", "/clock", {"ahead_seconds": ahead_seconds})

    def clear(self) -> None:
        """Ends all faults, breakpoints, drops and media faults, and sets the clock right."""
        self.send("POST", "/clear")

    def restart(self, *, down_seconds: float = 0.0) -> None:
        """Removes all calls, cuts all sockets, and comes back after `down_seconds`; also ends a crash."""
        self.send("POST", "/restart", {"down_seconds": down_seconds})

    def crash(self) -> None:
        """Removes all calls, cuts all sockets, and cuts every new connection until `restart()`."""
        self.send("POST", "/crash")

    # -- a look inside -------------------------------------------------------------------------------------------------

    def channels(self) -> list[JSONObject]:
        """Returns all channels as in REST, plus `kind` (caller, originated, media), `app`, `bridge_id`, `gaps`."""
        return list(self.send("GET", "/channels"))

    def channel(self, channel_id: str) -> JSONObject | None:
        """Returns a channel, None if there is none."""
        return next((channel for channel in self.channels() if channel["id"] == channel_id), None)

    def bridges(self) -> list[JSONObject]:
        """Returns all bridges as REST shows them."""
        return list(self.send("GET", "/bridges"))

    def requests(self, method: str | None = None, path: str | None = None) -> list[LoggedRequest]:
        """Returns the requests to `/ari` so far, oldest first."""
        found = [LoggedRequest(**logged) for logged in self.send("GET", "/requests")]
        return [r for r in found if method in (None, r.method) and path in (None, r.path)]

    def event_log(self, kind: str | None = None) -> list[JSONObject]:
        """Returns `{"delivered": bool, "event": {...}}` for each event that passed its app's filter, oldest first."""
        return [entry for entry in self.send("GET", "/events") if kind in (None, entry["event"]["type"])]

    def sockets(self, app: str) -> list[JSONObject]:
        """Returns the open event sockets of an app, oldest first: `is_hearing` (the newest only) and `opened_at`."""
        return list(self.send("GET", f"/applications/{quote(app, safe='')}/sockets"))

    def heard(self, channel_id: str) -> Heard:
        """Returns what a leg has heard, also after its end.

        Raises:
            errors.ControlError: there never was such a leg.
        """
        return Heard(**self.send("GET", f"/channels/{quote(channel_id, safe='')}/heard"))

    @property
    def crashes(self) -> int:
        """The number of crashes so far."""
        return int(self.send("GET", "/status")["crashes"])

    @property
    def is_running(self) -> bool:
        """True if it answers requests."""
        return bool(self.send("GET", "/status")["is_running"])

    @contextlib.contextmanager
    def media_refused(self) -> Iterator[None]:
        """Makes every media leg fail to connect within the `with` block."""
        self.refuse_media(True)
        try:
            yield
        finally:
            self.refuse_media(False)

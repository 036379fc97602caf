"""Callers at a steady rate, inbound and outbound, who hang up at random moments."""

from __future__ import annotations

import heapq
import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import psycopg
import requests

from chaos.deeds import Deeds
from devstack.asterisk import FAR_PREFIX, Switch
from shared import errors, messages, queues
from shared.call import ids
from shared.call.call_requests import CallRequest

#: When a caller hangs up, in seconds from the begin of the call; None: the agent does. With their weights.
MANNERS: dict[str, tuple[float, tuple[float, float] | None]] = {
    "at once": (2, (0.0, 0.05)),
    "during set-up": (3, (0.05, 0.4)),
    "after seconds": (6, (2.0, 9.0)),
    "after a minute": (1, (55.0, 65.0)),
    "never": (1, None),
}
#: Who begins a call, with weights.
DIRECTIONS = {"inbound": 8, "outbound": 1, "platform": 1}
#: One call in so many is listened to on both ends.
LISTENED = 8
PREFIX = "aip-chaos1-"
#: Of the ids of callers' legs.
CALLERS = "call-"
RUN = """
    INSERT INTO workflow_runs (name, workflow_id, mode, call_type, is_completed, initial_context, gathered_context,
                               usage_info, cost_info, annotations, created_at)
    VALUES ('WR-TEL-OUT-CHAOS', %s, 'ari', 'outbound', false, '{"provider": "ari"}', '{}', '{}', '{}', '{}', now())
    RETURNING id
"""
CALL_ID = "UPDATE workflow_runs SET gathered_context = %s WHERE id = %s"


@dataclass(frozen=True, kw_only=True)
class Line:
    """Where the calls of one tenant go: its app, which is also its dialplan context, and its rows."""

    app: str
    organization_id: int
    connection_id: int
    workflow_id: int
    user_id: int


class Callers:
    """Offers calls from a thread, until it is stopped.

    Args:
        switch: Makes an Asterisk's client; one for each thread.
        rate: Calls per second.
    """

    def __init__(
        self,
        switch: Callable[[], Switch],
        lines: Sequence[Line],
        deeds: Deeds,
        *,
        rate: float,
        chance: random.Random,
        database_url: str,
        redis_url: str,
    ) -> None:
        self._make_switch, self._local = switch, threading.local()
        self._lines, self._deeds, self._chance, self._rate = lines, deeds, chance, rate
        self._database_url = database_url
        self._commands = queues.BrokerCommandQueue(queues.broker(redis_url))
        self._pool = ThreadPoolExecutor(16, thread_name_prefix="callers")
        self._stopping = threading.Event()
        #: A request for a call that nothing can place yet is retried for long.
        self.requests_calls = True
        self._lock = threading.Lock()
        #: When which leg is hung up, the next one first.
        self._ends: list[tuple[float, str]] = []
        self._open: set[str] = set()
        #: The number of calls so far.
        self.offered = 0
        self._thread = threading.Thread(target=self._offer, name="offers")

    def start(self) -> None:
        """Begin to offer calls."""
        self._thread.start()

    def stop(self) -> None:
        """Offer no more calls; those that there are go on."""
        self._stopping.set()
        self._thread.join()

    def hang_up_all(self, *, seconds: float) -> None:
        """Hang up every caller who is left, and for so long those whom the pipeline still calls."""
        until = time.monotonic() + seconds
        while True:
            with self._lock:
                left = list(self._open)
            list(self._pool.map(self._hang_up, left))
            if time.monotonic() > until:
                break
            time.sleep(0.5)
        self._pool.shutdown()
        self._deeds.end()

    def _offer(self) -> None:
        began = time.monotonic()
        while not self._stopping.is_set():
            now = time.monotonic()
            if now >= began + self.offered / self._rate:
                self.offered += 1
                self._pool.submit(self._call, self._draw())
            while self._ends and self._ends[0][0] <= now:
                with self._lock:
                    _, leg = heapq.heappop(self._ends)
                self._pool.submit(self._hang_up, leg)
            self._stopping.wait(0.005)

    def _draw(self) -> _Call:
        chance = self._chance
        manner = chance.choices(list(MANNERS), [weight for weight, _ in MANNERS.values()])[0]
        bounds = MANNERS[manner][1]
        direction = chance.choices(list(DIRECTIONS), list(DIRECTIONS.values()))[0]
        return _Call(
            line=chance.choice(self._lines),
            direction=direction if self.requests_calls or direction != "outbound" else "inbound",
            manner=manner,
            seconds=chance.uniform(*bounds) if bounds else None,
            number=self.offered,
            is_listened=self.offered % LISTENED == 0,
        )

    def _call(self, call: _Call) -> None:
        begin = {"inbound": self._inbound, "outbound": self._outbound, "platform": self._platform}[call.direction]
        leg = (
            ids.originated_id(PREFIX, call.line.connection_id, call.name) if call.direction == "outbound" else call.name
        )
        sampled = call.is_listened and call.direction == "inbound"
        self._deeds.call(leg, app=call.line.app, direction=call.direction, manner=call.manner, sampled=sampled)
        try:
            begin(call)
        except (requests.RequestException, psycopg.Error, errors.QueueUnavailable) as exc:
            # It may have been begun all the same: it is hung up like the others.
            self._deeds.not_offered(leg, type(exc).__name__)
        with self._lock:
            self._open.add(leg)
            if call.seconds is not None:
                heapq.heappush(self._ends, (time.monotonic() + call.seconds, leg))

    def _inbound(self, call: _Call) -> None:
        self._switch.dial(
            call.line.app,
            caller=f"49155{call.number:07d}",
            channel_id=call.name,
            far="tone" if call.is_listened else "wait",
            listen=call.is_listened,
        )

    def _outbound(self, call: _Call) -> None:
        request = CallRequest(
            organization_id=call.line.organization_id,
            number="wait",
            request_id=call.name,
            workflow_id=call.line.workflow_id,
        )
        self._commands.send(messages.of_request(request))

    def _platform(self, call: _Call) -> None:
        """Call out as the platform does: a run first, then the leg, then the leg's id in the run."""
        line = call.line
        with psycopg.connect(self._database_url, autocommit=True, connect_timeout=5) as connection:
            (run_id,) = connection.execute(RUN, [line.workflow_id]).fetchone() or (0,)
            said = f"workflow_run_id={run_id},workflow_id={line.workflow_id},user_id={line.user_id}"
            self._switch.request(
                "POST", "/channels", endpoint="Local/wait@far", app=line.app, appArgs=said, channelId=call.name,
                formats="ulaw",
            ).raise_for_status()  # fmt: skip
            connection.execute(CALL_ID, [json.dumps({"provider": "ari", "call_id": call.name}), run_id])

    def _hang_up(self, leg: str) -> None:
        """Hang up as the caller would. Who is not there may still come, if we were asked to call."""
        with self._lock:
            if leg not in self._open:
                return
        end = f"{FAR_PREFIX}{leg}" if leg.startswith(CALLERS) else leg
        asked_at = time.time()
        try:
            status = self._switch.request("DELETE", f"/channels/{end}").status_code
        except requests.RequestException:
            return
        if status < 300:
            self._deeds.hang_up(leg, at=asked_at)
        if status < 300 or not leg.startswith(PREFIX):
            with self._lock:
                self._open.discard(leg)

    @property
    def _switch(self) -> Switch:
        """A client of this thread's own: a session of requests is not safe for threads."""
        if not hasattr(self._local, "switch"):
            self._local.switch = self._make_switch()
        switch: Switch = self._local.switch
        return switch


@dataclass(frozen=True, kw_only=True)
class _Call:
    line: Line
    direction: str
    manner: str
    #: Until its caller hangs up.
    seconds: float | None
    number: int
    is_listened: bool

    @property
    def name(self) -> str:
        """The channel id of an inbound or a platform's leg, and the id of a request of ours."""
        kind = CALLERS if self.direction == "inbound" else f"{self.direction}-"
        return f"{kind}{self.line.app}-{self.number:05d}"

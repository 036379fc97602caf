"""External media legs over websocket: they connect to the voice agent and carry audio both ways."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

import aiohttp
import yarl

from simulator import applications, audio, channels, errors, events, settings

_CLOSE_SECONDS = 1.0
#: What a value in `v(name=value,...)` may hold as it is; everything else has to be %HH.
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.+")
_HEX = frozenset("0123456789abcdefABCDEF")


def query_of(transport_data: str) -> str:
    """Returns the query that `v(a=1,b=2)` adds to the media URL: `a=1&b=2`.

    As in Asterisk, an option ends at the first `)`, even one that belongs to a value, and the rest is read as further
    options; a raw comma begins a new parameter.

    Raises:
        errors.Refusal: a name or value holds a character that should have been encoded.
    """
    query = ""
    rest = transport_data
    while rest:
        letter, rest = rest[0], rest[1:]
        if rest.startswith("("):
            argument, _, rest = rest[1:].partition(")")
            if letter == "v":
                query = argument.replace(",", "&")
    if not all(_is_encoded(part) for pair in query.split("&") for part in pair.split("=")):
        raise errors.Refusal(500, "An internal error prevented this request from being handled")
    return query


def _is_encoded(text: str) -> bool:
    pieces = text.split("%")
    return set(pieces[0]) <= _PLAIN and all(
        len(piece) >= 2 and set(piece[:2]) <= _HEX and set(piece[2:]) <= _PLAIN for piece in pieces[1:]
    )


async def _abandon(session: aiohttp.ClientSession, sockets: list[aiohttp.ClientWebSocketResponse]) -> None:
    # The session first: it drops the connections, so that closing the sockets sends nothing any more.
    await session.close()
    for socket in sockets:
        await socket.close()


@dataclass(eq=False)
class _Leg:
    channel: channels.Channel
    url: str
    app: str
    args: list[str]
    dialstring: str
    connected: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    socket: aiohttp.ClientWebSocketResponse | None = None


class Switch(Protocol):
    """The part of the switch that media legs act on."""

    settings: settings.Settings
    applications: applications.Applications

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]: ...
    def answer(self, channel: channels.Channel) -> None: ...
    def enter_stasis(self, channel: channels.Channel, app: str, args: list[str]) -> bool: ...
    def hang_up(self, channel: channels.Channel, cause: int, *, soft: bool) -> None: ...
    def destroy(self, channel: channels.Channel, cause: int) -> None: ...
    def others_in_bridge(self, channel: channels.Channel) -> list[channels.Channel]: ...
    def relay_tones(self) -> None: ...
    def talks(self, channel: channels.Channel) -> None: ...


class MediaLegs:
    """All media legs of one Asterisk."""

    def __init__(self, owner: Switch) -> None:
        self._switch = owner
        self._legs: dict[str, _Leg] = {}
        self._session: aiohttp.ClientSession | None = None
        self._ticker = audio.Ticker()
        self._is_ticking = False
        self._closings: set[asyncio.Task[object]] = set()
        #: Faults: a delay before each leg connects; every attempt fails.
        self.delay_seconds = 0.0
        self.is_refused = False

    def start(self, channel: channels.Channel, url: str, app: str, args: list[str], *, dialstring: str) -> None:
        """Starts connecting a leg; REST answers before it is connected."""
        leg = _Leg(channel, url, app, args, dialstring)
        self._legs[channel.id] = leg
        if self._switch.settings.audio and not self._is_ticking:
            self._is_ticking = True
            self._switch.spawn(self._ticker.run())
            self._switch.spawn(self._relay_tones())
        leg.task = self._switch.spawn(self._run(leg))

    def is_connecting(self, channel_id: str) -> bool:
        """Returns True if a leg exists and has no media socket yet."""
        leg = self._legs.get(channel_id)
        return leg is not None and leg.socket is None

    async def wait_connected(self, channel_id: str) -> None:
        """Waits until a leg has its socket and is in Stasis, or has failed."""
        leg = self._legs.get(channel_id)
        if leg is not None:
            await leg.connected.wait()

    def close(self, channel_id: str) -> None:
        """Closes a leg's socket, or stops its connecting."""
        leg = self._legs.pop(channel_id, None)
        if leg is None:
            return
        leg.connected.set()
        if leg.socket is not None:
            self._close_later(leg.socket.close())
        elif leg.task is not None and leg.task is not asyncio.current_task():
            leg.task.cancel()

    def wipe(self) -> None:
        """Cuts every media socket without a close frame, as a crash does."""
        sockets = [leg.socket for leg in self._legs.values() if leg.socket is not None]
        for leg in self._legs.values():
            leg.connected.set()
        self._legs.clear()
        self._is_ticking = False
        if self._session is not None:
            session, self._session = self._session, None
            self._close_later(_abandon(session, sockets))

    async def stop(self) -> None:
        """Waits until every socket is closed."""
        await asyncio.gather(*self._closings, return_exceptions=True)

    def _close_later(self, closing: Coroutine[Any, Any, object]) -> None:
        task = asyncio.get_running_loop().create_task(closing)
        self._closings.add(task)
        task.add_done_callback(self._closings.discard)

    async def _run(self, leg: _Leg) -> None:
        channel = leg.channel
        if self.delay_seconds:
            await asyncio.sleep(self.delay_seconds)
        leg.socket = await self._connect(leg.url)
        if leg.socket is None:
            if channel.doomed:
                leg.connected.set()
            else:
                self._switch.destroy(channel, 3)
            return
        # A leg that is to be deleted does this, too.
        self._switch.applications.publish(channel.id, events.dial(channel.snapshot(), "", leg.dialstring))
        self._switch.answer(channel)
        self._switch.applications.publish(channel.id, events.dial(channel.snapshot(), "ANSWER", leg.dialstring))
        client = leg.dialstring.partition("/")[0]
        try:
            await leg.socket.send_str(
                f"MEDIA_START connection_id:{client} channel:{channel.name} channel_id:{channel.id}"
                f" format:ulaw optimal_frame_size:{audio.FRAME_BYTES} ptime:20"
            )
        except ConnectionError:
            self._switch.destroy(channel, 16)
            return
        if not self._switch.enter_stasis(channel, leg.app, leg.args):
            self._switch.destroy(channel, 16)
            return
        leg.connected.set()
        speaking = self._switch.spawn(self._speak(channel, leg.socket)) if self._switch.settings.audio else None
        cause, channel.tech_cause = await self._listen(channel, leg.socket)
        if speaking is not None:
            speaking.cancel()
        self._switch.hang_up(channel, cause, soft=False)

    async def _connect(self, url: str) -> aiohttp.ClientWebSocketResponse | None:
        attempt_seconds = self._switch.settings.media_connection_timeout_seconds
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        for number in range(self._switch.settings.media_connection_attempts):
            if number:
                await asyncio.sleep(attempt_seconds)
            try:
                if not self.is_refused:
                    async with asyncio.timeout(attempt_seconds):
                        return await self._session.ws_connect(
                            yarl.URL(url, encoded=True),
                            protocols=("media",),
                            timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_SECONDS),
                            max_msg_size=0,
                        )
            except (TimeoutError, aiohttp.ClientError, OSError):
                pass
        return None

    async def _listen(self, channel: channels.Channel, socket: aiohttp.ClientWebSocketResponse) -> tuple[int, int]:
        """Hears the agent until it goes; returns the cause and the technical cause of its end."""
        while True:
            message = await socket.receive()
            match message.type:
                case aiohttp.WSMsgType.BINARY:
                    await self._hear(channel, socket, message.data)
                case aiohttp.WSMsgType.TEXT if message.data == "HANGUP":
                    return events.MEDIA_HUNG_UP
                case aiohttp.WSMsgType.CLOSE:
                    return events.MEDIA_CLOSED
                case aiohttp.WSMsgType.ERROR:
                    return events.MEDIA_GARBAGE
                case aiohttp.WSMsgType.CLOSED | aiohttp.WSMsgType.CLOSING:
                    return events.MEDIA_LOST

    async def _hear(self, channel: channels.Channel, socket: aiohttp.ClientWebSocketResponse, said: bytes) -> None:
        self._switch.talks(channel)
        for other in self._switch.others_in_bridge(channel):
            if other.state == "Up":
                other.ear.hear(said)
                if other.is_echo:
                    self._switch.talks(other)
                    channel.ear.hear(said)
                    await socket.send_bytes(said)

    async def _speak(self, channel: channels.Channel, socket: aiohttp.ClientWebSocketResponse) -> None:
        # One task per leg, so that an agent that does not read delays no other leg.
        try:
            while True:
                await self._ticker.tick()
                frame = self._frame_for(channel)
                if frame is not None:
                    await socket.send_bytes(frame)
        except ConnectionError:
            return

    def _frame_for(self, channel: channels.Channel) -> bytes | None:
        """Returns the next 20 ms for the agent: another party of its bridge, or the idle tone outside of one."""
        if channel.bridge_id is None:
            idle_hz = self._switch.settings.idle_tone_hz
            return None if idle_hz is None else audio.tone(idle_hz)
        for other in self._switch.others_in_bridge(channel):
            if other.speaks() and other.tone_hz is not None:
                frame = audio.tone(other.tone_hz)
                channel.ear.hear(frame)
                return frame
        return None

    async def _relay_tones(self) -> None:
        while True:
            await self._ticker.tick()
            self._switch.relay_tones()

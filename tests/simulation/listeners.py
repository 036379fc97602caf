"""The listener: reads event sockets, makes messages of events with the product's own parser, and asks for resyncs."""

from __future__ import annotations

from collections.abc import Callable

from listener.leg_ends import LegEnds
from shared import errors, messages
from shared.asterisk import events
from tests.simulation import asterisks, faults
from tests.simulation.brokers import Broker
from tests.simulation.faults import Fault
from tests.simulation.platforms import Tenant
from tests.simulation.world import World

_RETRY_SECONDS = 1.0


class Listener:
    """Keeps one tenant's event socket connected."""

    def __init__(self, world: World, broker: Broker, tenant: Tenant) -> None:
        self._world = world
        self._broker = broker
        self._tenant = tenant
        self._socket: asterisks.EventSocket | None = None
        self._name = f"listener of {tenant.app}"
        #: For a test: returns which events arrive.
        self.passes: Callable[[events.Event], bool] = lambda _event: True

    def open(self) -> None:
        """Connect the socket, now or as soon as possible."""
        asterisk = self._tenant.asterisk
        if not asterisk.is_running or asterisk.is_away:
            self._world.after(_RETRY_SECONDS, self.open)
            return
        self._socket = asterisks.EventSocket(self._received, self._lost)
        self._ends = LegEnds(self._send, self._world.after)
        asterisk.applications.connect([self._tenant.app], self._socket, subscribe_all=False)  # type: ignore[arg-type]
        self._push(messages.of_resync(connection=self._tenant.connection, reason="connected", full=True))

    def cut(self) -> None:
        """Break the socket; events on their way are lost."""
        if self._socket is not None:
            self._tenant.asterisk.applications.cut_sockets(self._tenant.app, silently=False)

    def _lost(self) -> None:
        self._ends.flush()
        self._socket = None
        self._world.after(self._world.choices.spread(0.2, 4.0), self.open)

    def _received(self, text: str) -> None:
        """Take an event that was sent: it arrives a little later, or not."""
        event = self._parsed(text)
        if event is None or event.channel is None or not self.passes(event):
            return
        if event.type in (events.EventType.DIAL, events.EventType.CHANNEL_DESTROYED) and self._world.choices.happens(
            0.3
        ):
            # Asterisk reports dialling and channels independently: in either order, some milliseconds apart (measured).
            self._world.after(self._world.choices.spread(0.0002, 0.015), lambda: self._take(event))
        else:
            self._take(event)

    def _take(self, event: events.Event) -> None:
        self._ends.take(event, int(self._world.wall() * 1000))

    def _send(self, event: events.Event, at_ms: int) -> bool:
        socket, world = self._socket, self._world
        message = messages.of_event(event, connection=self._tenant.connection, at_ms=at_ms)
        if message is None:
            return True
        seconds = world.choices.spread(0.0005, 0.003)
        fault = world.fault(faults.OF_EVENTS, *self._broker.concerned(message.kwargs))
        if fault is not None:
            world.tell(self._name, "%s — FAULT: %s", event.type, fault)
        if fault is Fault.EVENT_LOST:
            return True
        if fault is Fault.EVENT_LATE:
            seconds += world.choices.spread(0.003, 20.0)
        world.after(seconds, lambda: self._push(message) if self._socket is socket else None)
        if fault is Fault.EVENT_DOUBLED:
            world.after(seconds + world.choices.spread(0.0005, 20.0), lambda: self._push(message))
        return True

    def _parsed(self, text: str) -> events.Event | None:
        try:
            return events.parse(text)
        except errors.InvalidEvent as exc:
            self._world.tell(self._name, "unreadable event: %s", exc)
            return None

    def _push(self, message: messages.Message) -> None:
        """Enqueue a message; wait while Redis is away."""
        if self._broker.is_away:
            self._world.after(0.3, lambda: self._push(message))
        else:
            self._broker.put(message)

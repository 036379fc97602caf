"""Stasis apps: their event sockets, subscriptions and filters, and the delivery (or loss) of events."""

import json
import re
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from simulator import errors, events
from simulator.event_sockets import EventSocket


class EventFilter:
    """The filter set by `PUT /applications/{app}/eventFilter`: lists of `{"type": ..., further fields}`."""

    def __init__(self) -> None:
        self.allowed: list[dict[str, Any]] = []
        self.disallowed: list[dict[str, Any]] = []

    def change(self, body: object) -> None:
        """Replaces the lists that the body has; an empty body clears both, and null clears a list.

        Raises:
            errors.Refusal: the body is no valid filter.
        """
        given = {"allowed": None, "disallowed": None} if body in (None, {}) else body
        if not isinstance(given, dict):
            raise errors.Refusal(400, "Invalid format definition")
        for name in ("allowed", "disallowed"):
            entries = (given.get(name) or []) if name in given else getattr(self, name)
            if not isinstance(entries, list) or not all(isinstance(e, dict) and "type" in e for e in entries):
                raise errors.Refusal(400, "Invalid format definition")
            setattr(self, name, entries)

    def passes(self, event: events.Event) -> bool:
        """Returns True if the app gets this event."""
        if any(entry.items() <= event.items() for entry in self.disallowed):
            return False
        return not self.allowed or any(entry.items() <= event.items() for entry in self.allowed)


@dataclass(eq=False)
class Application:
    """One Stasis app. It exists as long as it has a socket or a channel.

    It stays longer if one of its channels ended within a bridge: that subscription is never removed (measured).
    """

    name: str
    socket: EventSocket | None = None
    subscribe_all: bool = False
    filter: EventFilter = field(default_factory=EventFilter)
    channel_ids: dict[str, None] = field(default_factory=dict)
    #: Bridge id → the channels that subscribe the app to it; those that ended in the bridge stay.
    bridges: dict[str, set[str]] = field(default_factory=dict)
    #: A channel ended within a bridge since the app was created.
    lingers: bool = False

    def snapshot(self) -> dict[str, Any]:
        """Returns the app as REST shows it."""
        return {
            "name": self.name,
            "channel_ids": list(self.channel_ids),
            "bridge_ids": list(self.bridges),
            "endpoint_ids": [],
            "device_names": [],
            "events_allowed": self.filter.allowed,
            "events_disallowed": self.filter.disallowed,
        }


@dataclass
class Drop:
    """A fault: the next `times` events of some types are lost; all of them if None."""

    types: Collection[str]
    times: int | None


class Applications:
    """All Stasis apps of one Asterisk."""

    def __init__(self, asterisk_id: str, log_entries: int) -> None:
        self._asterisk_id = asterisk_id
        self._by_name: dict[str, Application] = {}
        #: Every open socket, also those that were replaced → the apps it asked for.
        self.sockets: dict[EventSocket, list[str]] = {}
        self.drops: list[Drop] = []
        self.log: deque[dict[str, Any]] = deque(maxlen=log_entries)

    def snapshots(self) -> list[dict[str, Any]]:
        """Returns all apps as REST shows them."""
        return [application.snapshot() for application in self._by_name.values()]

    def get(self, name: str) -> Application:
        """Returns an app.

        Raises:
            errors.Refusal: there is none of this name.
        """
        if name not in self._by_name:
            raise errors.Refusal(404, "Application not found")
        return self._by_name[name]

    def is_connected(self, name: str) -> bool:
        """Returns True if an app has an event socket, so that a channel can enter it."""
        return name in self._by_name and self._by_name[name].socket is not None

    def connect(self, names: list[str], socket: EventSocket, *, subscribe_all: bool) -> None:
        """Makes a socket the one that gets the events of these apps; the previous one gets ApplicationReplaced."""
        self.sockets[socket] = names
        for name in names:
            application = self._by_name.setdefault(name, Application(name))
            if application.socket is not None:
                self._send(application, events.application_replaced())
            application.socket = socket
            application.lingers = bool(application.bridges)
            application.subscribe_all = subscribe_all

    def disconnect(self, socket: EventSocket) -> None:
        """Removes a closed socket, and the apps that have nothing else."""
        for name in self.sockets.pop(socket, []):
            self._detach(name, socket)

    def _detach(self, name: str, socket: EventSocket) -> None:
        application = self._by_name.get(name)
        if application is not None and application.socket is socket:
            application.socket = None
            self._remove_if_unused(application)

    def subscribe(self, name: str, channel_id: str) -> None:
        """Subscribes an app to a channel; an unknown app stays unknown."""
        if name in self._by_name:
            self._by_name[name].channel_ids[channel_id] = None

    def subscribe_bridge(self, name: str, channel_id: str, bridge_id: str) -> None:
        """Subscribes an app to a bridge that one of its channels entered."""
        if name in self._by_name:
            self._by_name[name].bridges.setdefault(bridge_id, set()).add(channel_id)

    def unsubscribe_bridge(self, channel_id: str, bridge_id: str, *, left_stasis: bool) -> None:
        """Unsubscribes from a bridge the app whose channel left it, unless the channel left Stasis from within."""
        for application in self._by_name.values():
            subscribers = application.bridges.get(bridge_id, set())
            if channel_id in subscribers and left_stasis:
                application.lingers = True
            else:
                subscribers.discard(channel_id)
                if not subscribers:
                    application.bridges.pop(bridge_id, None)

    def unsubscribe(self, channel_id: str, name: str | None = None) -> None:
        """Unsubscribes an app from a channel, or every app."""
        for application in list(self._by_name.values()):
            if channel_id in application.channel_ids and name in (None, application.name):
                del application.channel_ids[channel_id]
                self._remove_if_unused(application)

    def forget_bridge(self, bridge_id: str) -> None:
        """Unsubscribes every app from a bridge that is gone."""
        for application in self._by_name.values():
            application.bridges.pop(bridge_id, None)

    def publish(self, channel_id: str | None, event: events.Event, *, bridge_id: str | None = None) -> None:
        """Sends an event to each app that is subscribed to the channel or the bridge."""
        for application in self._by_name.values():
            if (
                channel_id in application.channel_ids
                or bridge_id in application.bridges
                or (application.subscribe_all and application.socket is not None)
            ):
                self._send(application, event)

    def publish_matching(self, pattern: str, event: events.Event) -> None:
        """Sends an event to the apps whose name matches a regular expression; an empty one matches all."""
        for application in self._by_name.values():
            if re.search(pattern, application.name):
                self._send(application, event)

    def publish_to(self, name: str, event: events.Event) -> None:
        """Sends an event to one app only."""
        if name in self._by_name:
            self._send(self._by_name[name], event)

    def socket_snapshots(self, name: str) -> list[dict[str, Any]]:
        """Returns the open sockets of an app, oldest first; at most one of them gets the events."""
        hearing = self._by_name[name].socket if name in self._by_name else None
        return [
            {"is_hearing": socket is hearing, "opened_at": socket.opened_at}
            for socket, names in self.sockets.items()
            if name in names
        ]

    def cut_sockets(self, name: str | None, *, silently: bool) -> int:
        """Cuts the sockets of one app (replaced ones too), or all, and returns how many.

        Silently: the TCP connections stay open but go dead; for Asterisk they are gone.
        """
        doomed = [socket for socket, names in self.sockets.items() if name is None or name in names]
        for socket in doomed:
            if silently:
                socket.fall_silent()
            else:
                socket.cut()
            for app in self.sockets[socket]:
                self._detach(app, socket)
        return len(doomed)

    def drop(self, types: list[str], times: int | None) -> None:
        """Drops the next `times` events of these types; all of them if None."""
        self.drops.append(Drop(types, times))

    def wipe(self) -> None:
        """Cuts every socket and removes every app: Asterisk is gone."""
        for socket in self.sockets:
            socket.cut()
        self.sockets.clear()
        self._by_name.clear()

    def _send(self, application: Application, event: events.Event) -> None:
        if not application.filter.passes(event):
            return
        whole = event | {"asterisk_id": self._asterisk_id, "application": application.name}
        delivered = application.socket is not None and not self._is_dropped(event["type"])
        self.log.append({"delivered": delivered, "event": whole})
        if delivered and application.socket is not None:
            application.socket.send(json.dumps(whole, separators=(",", ":")))

    def _is_dropped(self, kind: str) -> bool:
        for drop in self.drops:
            if kind in drop.types and drop.times != 0:
                drop.times = None if drop.times is None else drop.times - 1
                return True
        return False

    def _remove_if_unused(self, application: Application) -> None:
        if application.socket is None and not application.channel_ids and not application.lingers:
            self._by_name.pop(application.name, None)

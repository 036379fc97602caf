"""The switch: the channels, bridges and Stasis apps of one Asterisk, and every operation on them.

Every operation takes effect at once, in one event loop. What takes time (connecting media, a dialplan that waits) is in
`media`, `dialplan` and `originates`; HTTP is in `rest`.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Coroutine
from typing import Any

from simulator import applications, audio, bridges, broadcasts, channels, errors, events, media, settings

#: Number of ended legs that are kept.
_ENDED_LEGS = 5000


class Switch:
    """One Asterisk, without its HTTP server."""

    def __init__(self, configured: settings.Settings) -> None:
        self.settings = configured
        self.applications = applications.Applications(configured.asterisk_id, configured.log_entries)
        self.channels: dict[str, channels.Channel] = {}
        self.bridges: dict[str, bridges.Bridge] = {}
        self.broadcasts = broadcasts.Broadcasts()
        self.media = media.MediaLegs(self)
        #: Ended legs: a test may ask what they have heard.
        self._ended: OrderedDict[str, channels.Channel] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._numbers = 0
        self.is_running = True
        self.crashes = 0
        #: Incremented by each crash and restart: an answer computed in an earlier life is never sent.
        self.life = 0

    # -- tasks and life ------------------------------------------------------------------------------------------------

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs a task that is cancelled when this Asterisk dies."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def number(self) -> int:
        """Returns a number that no other channel of this Asterisk has."""
        self._numbers += 1
        return self._numbers

    def crash(self) -> None:
        """Removes all calls and sockets; no request is answered until a restart."""
        if not self.is_running:
            return
        self.crashes += 1
        self.stop_running()
        delay_seconds = self.settings.restart_after_seconds
        if delay_seconds is not None:
            self.restart_later(delay_seconds)

    def restart(self) -> None:
        """Starts again, empty, whether it ran or not."""
        self.stop_running()
        self.is_running = True

    def restart_later(self, delay_seconds: float) -> None:
        """Restarts after a delay, unless it is restarted before."""
        life = self.life
        loop = asyncio.get_running_loop()
        loop.call_later(delay_seconds, lambda: self.restart() if self.life == life else None)

    def stop_running(self) -> None:
        """Removes all calls and sockets; no request is answered until a restart."""
        self.is_running = False
        self.life += 1
        for task in self._tasks:
            task.cancel()
        self.applications.wipe()
        self.broadcasts.clear()
        for channel in self.channels.values():
            self._remember(channel)
        self.channels.clear()
        self.bridges.clear()
        self.media.wipe()

    async def stop(self) -> None:
        """Ends it for good; returns when all of its tasks have ended."""
        tasks = list(self._tasks)
        self.stop_running()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.media.stop()

    # -- channels ------------------------------------------------------------------------------------------------------

    def channel(self, channel_id: str) -> channels.Channel:
        """Returns a channel.

        Raises:
            errors.Refusal: there is none of this id.
        """
        if channel_id not in self.channels:
            raise errors.Refusal(404, "Channel not found")
        return self.channels[channel_id]

    def is_alive(self, channel: channels.Channel) -> bool:
        """Returns True if this very channel (not a later one of the same id) exists."""
        return self.channels.get(channel.id) is channel

    def is_id_in_use(self, channel_id: str) -> bool:
        """Returns True if an id is that of a live channel or a prefix of one: no channel can get it (measured)."""
        return any(live.startswith(channel_id) for live in self.channels)

    def add(self, channel: channels.Channel) -> None:
        """Adds a new channel.

        Raises:
            errors.Refusal: its id is in use.
        """
        if self.is_id_in_use(channel.id):
            raise errors.Refusal(409, "Channel with given unique ID already exists")
        self.channels[channel.id] = channel

    def answer(self, channel: channels.Channel) -> None:
        """Answers a channel; a second time changes nothing."""
        if channel.state != "Up":
            channel.state = "Up"
            self.applications.publish(channel.id, events.state_change(channel.snapshot()))
            if channel.on_answer is not None:
                channel.on_answer()

    def enter_stasis(
        self, channel: channels.Channel, app: str, args: list[str], *, app_data: str = "", by: str = "Stasis"
    ) -> bool:
        """Runs Stasis(app,args), or the application `by`, on a channel; returns False if the app has no socket."""
        if not self.applications.is_connected(app):
            return False
        channel.app = app
        channel.run(by, app_data or ",".join([app, *args]))
        self.applications.subscribe(app, channel.id)
        self.applications.publish_to(app, events.stasis_start(channel.snapshot(), args))
        return True

    def move(self, channel: channels.Channel, app: str, args: list[str]) -> None:
        """Moves a channel to another app, or again to its own. It stays in its bridge, and its dialplan shows the app
        that it entered by Stasis(); to an app that is not connected it does not go (measured).

        Raises:
            errors.Refusal: the channel is not in Stasis.
        """
        if channel.app is None:
            raise errors.Refusal(409, "Channel not in Stasis application")
        if not self.applications.is_connected(app):
            failed = events.move_failed(channel.snapshot(), app, args)
            self.applications.publish_to(channel.app, failed)
            return
        self.applications.publish_to(channel.app, events.stasis_end(channel.snapshot()))
        self.broadcasts.forget(channel.id)
        if not channel.keeps(channel.app):
            self.applications.unsubscribe(channel.id, channel.app)
        channel.app = app
        self.applications.subscribe(app, channel.id)
        self.applications.publish_to(app, events.stasis_start(channel.snapshot(), args))

    def leave_stasis(self, channel: channels.Channel, *, dying: bool = False) -> None:
        """Takes a channel out of its app; a caller's leg is then unsubscribed: the app gets no event of it."""
        self._leave_bridge(channel, left_stasis=True)
        if channel.app is None:
            return
        app, channel.app = channel.app, None
        self.applications.publish_to(app, events.stasis_end(channel.snapshot()))
        self.broadcasts.forget(channel.id)
        if not channel.keeps(app) and not (dying and self.settings.caller_channel_destroyed):
            self.applications.unsubscribe(channel.id, app)

    def hang_up(self, channel: channels.Channel, cause: int, *, soft: bool) -> None:
        """Hangs a channel up, at the request of a REST client (soft) or of its party."""
        if self.is_alive(channel):
            request = events.hangup_request(
                channel.snapshot(), events.DELETED if soft else cause, soft=soft, tech_cause=channel.tech_cause
            )
            self.applications.publish(channel.id, request)
            if channel.dialling:
                not_answered = events.dial(channel.snapshot(), "NOANSWER", channel.dialling)
                self.applications.publish(channel.id, not_answered)
            self.destroy(channel, cause)

    def destroy(self, channel: channels.Channel, cause: int) -> None:
        """Removes a channel and notifies the apps that are subscribed to it."""
        if not self.is_alive(channel):
            return
        if channel.transferred_from is not None:
            self.applications.publish_to(channel.transferred_from, events.stasis_end(channel.snapshot()))
        self.leave_stasis(channel, dying=True)
        del self.channels[channel.id]
        self._remember(channel)
        self.broadcasts.forget(channel.id)
        self.media.close(channel.id)
        destroyed = events.channel_destroyed(channel.snapshot(), cause, tech_cause=channel.tech_cause)
        self.applications.publish(channel.id, destroyed)
        self.applications.unsubscribe(channel.id)
        peer = self.channels.get(channel.peer_id or "")
        if peer is not None and peer.peer_id == channel.id:
            self.hang_up(peer, cause, soft=False)

    def replace(self, channel: channels.Channel, successor: channels.Channel) -> None:
        """Replaces a channel in Stasis by another one (a masquerade); the first is gone without a ChannelDestroyed.

        Raises:
            errors.Refusal: the channel is not in Stasis, or is in a bridge; the successor's id is in use.
        """
        if channel.app is None or channel.bridge_id is not None:
            raise errors.Refusal(409, "Channel is not in a Stasis application, or is in a bridge")
        self.add(successor)
        app, channel.app, successor.app = channel.app, None, channel.app
        self.applications.subscribe(app, successor.id)
        start = events.stasis_start(successor.snapshot(), [], replaced=channel.snapshot())
        self.applications.publish_to(app, start)
        self.applications.publish_to(app, events.stasis_end(channel.snapshot()))
        self.applications.unsubscribe(channel.id)
        # From here on it shows the dialplan position and the creationtime of the one it replaces (measured).
        successor.run(channel.app_name, channel.app_data)
        successor.context, successor.extension = channel.context, channel.extension
        successor.creationtime = channel.creationtime
        self.destroy(channel, 26)

    def transfer(self, channel: channels.Channel, successor: channels.Channel) -> None:
        """Puts another channel into the bridge of one whose party transfers the others; it is not answered yet.

        The channel of that party stays up, and shows Stasis still, but no app is subscribed to it any more (measured):
        when it ends there is a StasisEnd alone.

        Raises:
            errors.Refusal: the channel is not in Stasis, or in no bridge; the successor's id is in use.
        """
        bridge = self.bridges.get(channel.bridge_id or "")
        if channel.app is None or bridge is None:
            raise errors.Refusal(409, "Channel is not in a Stasis application, or in no bridge")
        self.add(successor)
        app, channel.app, channel.transferred_from = channel.app, None, channel.app
        successor.app = app
        successor.run("Stasis", app)
        self.applications.subscribe(app, successor.id)
        start = events.stasis_start(successor.snapshot(), [], replaced=channel.snapshot())
        self.applications.publish_to(app, start)
        self._leave_bridge(channel)
        if not channel.keeps(app):
            self.applications.unsubscribe(channel.id)
        self.add_to_bridge(bridge, [successor.id])

    # -- bridges -------------------------------------------------------------------------------------------------------

    def bridge(self, bridge_id: str) -> bridges.Bridge:
        """Returns a bridge.

        Raises:
            errors.Refusal: there is none of this id.
        """
        if bridge_id not in self.bridges:
            raise errors.Refusal(404, "Bridge not found")
        return self.bridges[bridge_id]

    def create_bridge(self, bridge: bridges.Bridge) -> None:
        """Adds a new bridge.

        Raises:
            errors.Refusal: its id is in use.
        """
        if bridge.id in self.bridges:
            raise errors.Refusal(409, f"Bridge with id '{bridge.id}' already exists")
        self.bridges[bridge.id] = bridge

    def destroy_bridge(self, bridge: bridges.Bridge) -> None:
        """Removes a bridge; its channels stay in Stasis."""
        for channel_id in list(bridge.channel_ids):
            self._leave_bridge(self.channels[channel_id])
        del self.bridges[bridge.id]
        self.applications.publish(None, events.bridge_destroyed(bridge.snapshot()), bridge_id=bridge.id)
        self.applications.forget_bridge(bridge.id)

    def add_to_bridge(self, bridge: bridges.Bridge, channel_ids: list[str]) -> None:
        """Puts channels into a bridge: all of them or none.

        Raises:
            errors.Refusal: one is gone (400) or not in Stasis (422).
        """
        joining = self._controlled(channel_ids)
        for channel in joining:
            # A leg that is already in the bridge leaves and enters again; both parties hear the gap.
            channel.gaps += channel.bridge_id == bridge.id
            self._leave_bridge(channel)
            bridge.channel_ids.append(channel.id)
            channel.bridge_id = bridge.id
            if channel.app is not None:
                self.applications.subscribe_bridge(channel.app, channel.id, bridge.id)
            entered = events.entered_bridge(bridge.snapshot(), channel.snapshot())
            self.applications.publish(channel.id, entered, bridge_id=bridge.id)

    def remove_from_bridge(self, bridge: bridges.Bridge, channel_ids: list[str]) -> None:
        """Takes channels out of a bridge: all of them or none.

        Raises:
            errors.Refusal: one is gone (400), not in Stasis or not in this bridge (422).
        """
        leaving = self._controlled(channel_ids)
        if any(channel.bridge_id != bridge.id for channel in leaving):
            raise errors.Refusal(422, "Channel not in this bridge")
        for channel in leaving:
            self._leave_bridge(channel)

    def _controlled(self, channel_ids: list[str]) -> list[channels.Channel]:
        for channel_id in channel_ids:
            if channel_id not in self.channels:
                raise errors.Refusal(400, "Channel not found")
            if self.channels[channel_id].app is None:
                raise errors.Refusal(422, "Channel not in Stasis application")
        return [self.channels[channel_id] for channel_id in channel_ids]

    def _leave_bridge(self, channel: channels.Channel, *, left_stasis: bool = False) -> None:
        bridge = self.bridges.get(channel.bridge_id or "")
        channel.bridge_id = None
        if bridge is not None:
            bridge.channel_ids.remove(channel.id)
            left = events.left_bridge(bridge.snapshot(), channel.snapshot())
            self.applications.publish(channel.id, left, bridge_id=bridge.id)
            self.applications.unsubscribe_bridge(channel.id, bridge.id, left_stasis=left_stasis)

    # -- audio ------------------------------------------------------------------------------------------------

    def others_in_bridge(self, channel: channels.Channel) -> list[channels.Channel]:
        """Returns the other legs of a channel's bridge, which hear it."""
        bridge = self.bridges.get(channel.bridge_id or "")
        return [] if bridge is None else [self.channels[i] for i in bridge.channel_ids if i != channel.id]

    def talks(self, channel: channels.Channel) -> None:
        """A party sends audio: told once to the apps, if its leg has TALK_DETECT. The silence after it is not told."""
        if channel.detects_talking and not channel.is_talking:
            channel.is_talking = True
            self.applications.publish(channel.id, events.talking_started(channel.snapshot()))

    def relay_tones(self) -> None:
        """Passes 20 ms of tones between parties that have no media socket."""
        for bridge in self.bridges.values():
            if len(bridge.channel_ids) > 1:
                legs = [self.channels[channel_id] for channel_id in bridge.channel_ids]
                for speaker in (leg for leg in legs if leg.speaks()):
                    self.talks(speaker)
                    for leg in legs:
                        if leg is not speaker and leg.kind != channels.Kind.MEDIA and leg.state == "Up":
                            leg.ear.hear(audio.tone(speaker.tone_hz or self.settings.caller_tone_hz))

    def heard(self, channel_id: str) -> dict[str, Any] | None:
        """Returns what a leg has heard, also after its end; None for an unknown id."""
        channel = self.channels.get(channel_id) or self._ended.get(channel_id)
        return None if channel is None else channel.heard()

    def _remember(self, channel: channels.Channel) -> None:
        self._ended.pop(channel.id, None)
        self._ended[channel.id] = channel
        if len(self._ended) > _ENDED_LEGS:
            self._ended.popitem(last=False)

"""A channel: one leg of a call, as Asterisk shows it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from simulator import audio, events


class Kind(StrEnum):
    """Origin of a channel; it decides which events reach the app after the channel has left Stasis."""

    #: An incoming call.
    CALLER = "caller"
    #: Created by POST /channels with app=, or its far half.
    ORIGINATED = "originated"
    #: Created by POST /channels/externalMedia.
    MEDIA = "media"


@dataclass(kw_only=True, eq=False)
class Channel:
    """One leg. `app` is the Stasis app it is in, None while it is elsewhere in the dialplan."""

    id: str
    name: str
    kind: Kind
    state: str = "Down"
    caller_number: str = ""
    caller_name: str = ""
    context: str = "default"
    extension: str = "s"
    priority: int = 1
    protocol_id: str = ""
    app: str | None = None
    #: The app that it was in when its party transferred the others of its bridge.
    transferred_from: str | None = None
    #: The app that a client made it for.
    made_for: str | None = None
    app_name: str = ""
    app_data: str = ""
    bridge_id: str | None = None
    #: The other half of a Local channel; both end together.
    peer_id: str | None = None
    tone_hz: int | None = None
    #: Number of times this leg left its bridge and entered it again: its parties hear a gap each time.
    gaps: int = 0
    #: A DELETE waits until it has connected, and then hangs it up.
    doomed: bool = False
    #: What an unanswered originate dials; a Dial event reports its end.
    dialling: str = ""
    #: Its party echoes what it hears.
    is_echo: bool = False
    tech_cause: int | None = None
    #: It has the function TALK_DETECT; it has sent audio since.
    detects_talking: bool = False
    is_talking: bool = False
    #: Called when it is answered.
    on_answer: Callable[[], None] | None = None
    variables: dict[str, str] = field(default_factory=dict)
    creationtime: str = field(default_factory=events.timestamp)
    ear: audio.Ear = field(default_factory=audio.Ear)

    def snapshot(self) -> dict[str, Any]:
        """Returns the channel as REST and events show it."""
        return {
            "id": self.id,
            "name": self.name,
            "state": self.state,
            "protocol_id": self.protocol_id,
            "caller": {"name": self.caller_name, "number": self.caller_number},
            "connected": {"name": "", "number": ""},
            "accountcode": "",
            "dialplan": {
                "context": self.context,
                "exten": self.extension,
                "priority": self.priority,
                "app_name": self.app_name,
                "app_data": self.app_data,
            },
            "creationtime": self.creationtime,
            "language": "en",
        }

    def run(self, app_name: str, app_data: str = "") -> None:
        """Sets the dialplan application that this channel shows."""
        self.app_name = app_name
        self.app_data = app_data

    def keeps(self, app: str) -> bool:
        """Returns True if an app that it leaves stays subscribed to it: the one that it was made for (measured)."""
        return self.kind is not Kind.CALLER and self.made_for in (None, app)

    def speaks(self) -> bool:
        """Returns True if its party can be heard in a bridge: an unanswered call has no audio."""
        return self.kind != Kind.MEDIA and self.state == "Up" and self.tone_hz is not None

    def heard(self) -> dict[str, Any]:
        """Returns what its party has heard through bridges, for the control client."""
        return {"heard_bytes": self.ear.heard_bytes, "dominant_hz": self.ear.dominant_hz(), "gaps": self.gaps}

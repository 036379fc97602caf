"""A channel: one leg of a call, and how Asterisk shows it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from simulator import audio, events


class Kind(StrEnum):
    """Where a channel comes from: it decides which events reach the app after it has left Stasis."""

    #: Came in through the dialplan.
    CALLER = "caller"
    #: Made by POST /channels with app=, or its far half.
    ORIGINATED = "originated"
    #: Made by POST /channels/externalMedia.
    MEDIA = "media"


@dataclass(kw_only=True, eq=False)
class Channel:
    """One leg. `app` is the Stasis app it is in, or None while it is elsewhere in the dialplan."""

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
    app_name: str = ""
    app_data: str = ""
    bridge_id: str | None = None
    #: The other half of a Local channel: neither outlives the other.
    peer_id: str | None = None
    tone_hz: int | None = None
    #: Times this leg was taken out of its bridge and put back: each is heard by the parties.
    gaps: int = 0
    #: A DELETE waits for it to finish connecting, and hangs it up then.
    doomed: bool = False
    #: What an originate that nobody has answered yet dials; its end is told by a Dial event then.
    dialling: str = ""
    #: Its party sends back what it hears.
    is_echo: bool = False
    tech_cause: int | None = None
    #: What follows when it is answered.
    on_answer: Callable[[], None] | None = None
    variables: dict[str, str] = field(default_factory=dict)
    creationtime: str = field(default_factory=events.timestamp)
    ear: audio.Ear = field(default_factory=audio.Ear)

    def snapshot(self) -> dict[str, Any]:
        """The channel as REST and events show it."""
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
        """Shows a dialplan application as the one this channel is in."""
        self.app_name = app_name
        self.app_data = app_data

    def speaks(self) -> bool:
        """Whether its party can be heard in a bridge: an unanswered call has no audio."""
        return self.kind != Kind.MEDIA and self.state == "Up" and self.tone_hz is not None

    def heard(self) -> dict[str, Any]:
        """What its party has heard through a bridge, for the control client."""
        return {"heard_bytes": self.ear.heard_bytes, "dominant_hz": self.ear.dominant_hz(), "gaps": self.gaps}

"""A bridge: the legs that hear each other, as Asterisk shows it."""

from dataclasses import dataclass, field
from typing import Any

from simulator import events


@dataclass(kw_only=True, eq=False)
class Bridge:
    """One bridge; it stays until it is deleted, empty or not."""

    id: str
    type: str = "mixing"
    name: str = ""
    #: Ids, in the order of entry.
    channel_ids: list[str] = field(default_factory=list)
    creationtime: str = field(default_factory=events.timestamp)

    def technology(self) -> str:
        """Returns its mixing technology: two parties need no conference mixer."""
        if "holding" in self.type:
            return "holding_bridge"
        return "softmix" if len(self.channel_ids) > 2 else "simple_bridge"

    def snapshot(self) -> dict[str, Any]:
        """Returns the bridge as REST and events show it."""
        return {
            "id": self.id,
            "technology": self.technology(),
            "bridge_type": "holding" if "holding" in self.type else "mixing",
            "bridge_class": "stasis",
            "creator": "Stasis",
            "name": self.name,
            "channels": list(self.channel_ids),
            "creationtime": self.creationtime,
            "video_mode": "talker",
        }

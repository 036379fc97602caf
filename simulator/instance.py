"""One simulated Asterisk without its server: the switch, the faults in force and the log of requests.

The control API and the scenarios act on it; the server answers from it.
"""

from collections import deque
from dataclasses import dataclass

from simulator import faults, settings, switch


@dataclass(kw_only=True)
class LoggedRequest:
    """One request to `/ari`; `status` is None while it is served, 0 when its connection was cut."""

    method: str
    path: str
    query: dict[str, str]
    started_at: float
    status: int | None = None
    ms: float | None = None


class Instance:
    """The state of one simulated Asterisk."""

    def __init__(self, configured: settings.Settings) -> None:
        self.switch = switch.Switch(configured)
        self.faults = faults.Faults()
        self.log: deque[LoggedRequest] = deque(maxlen=configured.log_entries)

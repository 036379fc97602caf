"""Validated bodies of the control requests, as tests send them and scenario files hold them."""

from typing import Literal

import pydantic


class ControlRequest(pydantic.BaseModel):
    """Base of all control requests; an unknown field is an error."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Dial(ControlRequest):
    """A call comes in."""

    app: str
    caller: str = "+15551234"
    called: str = "100"
    args: list[str] = []
    channel_id: str | None = None
    answered: bool = False
    dialplan: Literal["recommended", "plain"] = "recommended"
    hang_up_after: float | None = pydantic.Field(default=None, ge=0)
    tone_hz: int | None = pydantic.Field(default=None, gt=0, lt=4000, multiple_of=50)


class HangUp(ControlRequest):
    """The party of a channel hangs up."""

    cause: int = 16


class Reenter(ControlRequest):
    """The dialplan runs Stasis() on a channel again."""

    app: str
    args: list[str] = []


class PickUp(ControlRequest):
    """Another channel picks a call up."""

    caller: str = "+15551234"
    channel_id: str | None = None


class Transfer(ControlRequest):
    """The party of a channel transfers the others in its bridge."""

    extension: str = "1001"
    channel_id: str | None = None


class Match(ControlRequest):
    """Selects requests to `/ari`. `path` is below `/ari` and decoded; `*` in it matches any text, slashes too."""

    method: str = "*"
    path: str
    when: Literal["before", "after"] = "before"


class Fault(Match):
    """Makes matching requests fail `before` or `after` they take effect.

    `status` is answered instead of Asterisk's own answer, `abort` cuts the connection.
    """

    delay_seconds: float = pydantic.Field(default=0.0, ge=0)
    status: int | None = pydantic.Field(default=None, ge=400, le=599)
    message: str = "Simulated fault"
    abort: bool = False
    times: int | None = pydantic.Field(default=None, ge=1)
    probability: float = pydantic.Field(default=1.0, ge=0, le=1)


class Breakpoint(Match):
    """Stops matching requests until it is released."""


class CutSockets(ControlRequest):
    """Cuts event sockets; silently: they stay open but go dead."""

    app: str | None = None
    silently: bool = False


class DropEvents(ControlRequest):
    """Drops events of these types."""

    types: list[str]
    times: int | None = pydantic.Field(default=None, ge=1)


class Media(ControlRequest):
    """Sets how media legs connect from now on; None changes nothing."""

    delay_seconds: float | None = pydantic.Field(default=None, ge=0)
    refuse: bool | None = None


class Clock(ControlRequest):
    """Sets the clock of the machine that the simulator stands for; its time stamps and nothing else go by it."""

    ahead_seconds: float


class Crash(ControlRequest):
    """Removes all channels, bridges and sockets; no request is answered until a restart."""


class Clear(ControlRequest):
    """Ends all faults, breakpoints, drops and media faults, and sets the clock right."""


class Restart(ControlRequest):
    """Removes all channels, bridges and sockets; Asterisk answers again after this time."""

    down_seconds: float = pydantic.Field(default=0.0, ge=0)

"""What a test or a scenario may order: checked forms of callers, faults, gates and the rest."""

from typing import Literal

import pydantic


class Order(pydantic.BaseModel):
    """Root of all orders: an unknown field is an error, not a silent nothing."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Dial(Order):
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


class HangUp(Order):
    """The party at the other end hangs up."""

    cause: int = 16


class Reenter(Order):
    """The dialplan runs Stasis() on a channel again."""

    app: str
    args: list[str] = []


class PickUp(Order):
    """Somebody else picks a call up."""

    caller: str = "+15551234"
    channel_id: str | None = None


class Match(Order):
    """Which requests are meant. `path` is below `/ari`, decoded; `*` in it is any text, slashes too."""

    method: str = "*"
    path: str
    when: Literal["before", "after"] = "before"


class Fault(Match):
    """What goes wrong with matching requests: `before` or `after` they took effect.

    `status` answers in Asterisk's place (before: and nothing takes effect), `abort` cuts the connection.
    """

    delay_seconds: float = pydantic.Field(default=0.0, ge=0)
    status: int | None = pydantic.Field(default=None, ge=400, le=599)
    message: str = "Simulated fault"
    abort: bool = False
    times: int | None = pydantic.Field(default=None, ge=1)
    probability: float = pydantic.Field(default=1.0, ge=0, le=1)


class Gate(Match):
    """Matching requests wait until the gate is released."""


class CutSockets(Order):
    """Event sockets are lost; silently: they stay open and go dead."""

    app: str | None = None
    silently: bool = False


class DropEvents(Order):
    """Events of these types are lost."""

    types: list[str]
    times: int | None = pydantic.Field(default=None, ge=1)


class Media(Order):
    """How media legs connect from now on; None leaves it as it is."""

    delay_seconds: float | None = pydantic.Field(default=None, ge=0)
    refuse: bool | None = None


class Crash(Order):
    """Everything vanishes, and nobody answers until a restart."""


class Clear(Order):
    """All faults, gates, drops and media troubles end."""


class Restart(Order):
    """Everything vanishes; Asterisk answers again after this time."""

    down_seconds: float = pydantic.Field(default=0.0, ge=0)

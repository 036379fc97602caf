"""What the processes need of the voice-agent platform, whichever it is: values and Protocols.

`shared.platform.dograh` is the adapter. A second platform is a second folder beside it; nothing else changes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from shared.asterisk.endpoint import Configuration
from shared.call.call_settings import CallSettings
from shared.call.calls import Call
from shared.call.legs import Attempt
from shared.call.stasis_args import RunArgs
from shared.storage import database


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """The workflow that serves a call, and the settings of the call."""

    workflow_id: int
    user_id: int
    settings: CallSettings
    #: A caller who is refused for another reason continues in the dialplan.
    continue_in_dialplan: bool = False
    #: The platform's limit of concurrent calls of the organization, read along for an inbound call; None for no limit.
    concurrent_calls: int | None = None
    #: An id for the run of the call, given to no other run; None when the platform gives ids at the INSERT only.
    reserved_run_id: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NoRoute:
    """Why a call is not served, the Q.850 cause for it, and whether its caller continues in the dialplan."""

    reason: str
    hangup_cause: int
    continue_in_dialplan: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The account that a user's calls are paid from."""

    #: The user's name at the platform's services.
    provider_id: str
    #: The keys of the platform's services that the user's calls use, each once.
    service_keys: tuple[str, ...] = field(repr=False)


class ConfigurationRow(Protocol):
    """One tenant's telephony configuration, as the platform stores it."""

    @property
    def source_id(self) -> int:
        """The platform's id of the configuration."""

    @property
    def organization_id(self) -> int:
        """The tenant."""

    @property
    def media_client(self) -> str | None:
        """The websocket client that connects to the voice agent; None if the configuration names none."""

    def read(self) -> Configuration:
        """Return the configuration in its canonical form.

        Raises:
            InvalidConfiguration: It cannot be used; names the field and the reason.
        """


class Configurations(Protocol):
    """The tenants' telephony configurations."""

    def all(self) -> Collection[ConfigurationRow]:
        """Return the configuration of every Asterisk: all of them or, by an error, none."""

    def fingerprint(self) -> str:
        """Return what is another text when any of the configurations has changed, at a far lower cost than `all`."""


class Routes(Protocol):
    """Which workflow serves a call, and how."""

    def inbound(self, organization_id: int) -> Route | NoRoute:
        """Return the route of an organization's inbound calls."""

    def send_inbound(self, connection: database.Connection, connection_id: int) -> Callable[[], Route | NoRoute | None]:
        """Send for the route of a connection's inbound calls, with an id for the run; what returns it is returned.

        To be called once the answer is there. None when the route takes more statements: `inbound` runs them.
        """

    def outbound(self, *, organization_id: int, workflow_id: int) -> Route | NoRoute:
        """Return the route of an outbound call for a workflow."""


class Runs(Protocol):
    """The workflow runs of calls. A `connection` parameter is the caller's transaction."""

    def workflow_of(self, workflow_run_id: int, organization_id: int) -> int | None:
        """Return the workflow of an organization's run; None if the organization has no such run."""

    def create(
        self,
        connection: database.Connection,
        call: Call,
        *,
        first_attempt: Attempt | None = None,
        reserved_id: int | None = None,
    ) -> int:
        """Insert the run of a call; return its id.

        Args:
            first_attempt: The ids that the call's first attempt will give its legs, if they may be in the run from
                the start: nearly every call has no other one.
            reserved_id: The id that its route has reserved. Then the run is sent along with the commit.
        """

    def attach(self, connection: database.Connection, call: Call, args: RunArgs) -> Route | NoRoute:
        """Attach a run that waits for a call to this call."""

    def waiting(self, connection: database.Connection, *, organization_id: int, channel_id: str) -> int | None:
        """Return and lock the run that waits for a call which the platform began with this channel id; or None."""

    def end_in(self, connection: database.Connection, call: Call, media: Mapping[str, str]) -> None:
        """End the call's run."""

    def note_media(self, call: Call, *, media_id: str, bridge_id: str) -> None:
        """Write the ids of the media leg and the bridge into the run, unless they are there from the start."""

    def has_transfer(self, call: Call) -> bool:
        """Return whether the platform transfers the call's caller, or has done so: its run says so before it begins."""

    def note_transfer(self, call: Call) -> None:
        """Write into the run that the caller was handed over: the voice agent is out, the parties talk on."""

    def end(self, call: Call, *, media_id: str, bridge_id: str) -> None:
        """End the call's run, unless that is the platform's task."""


class Accounts(Protocol):
    """The accounts that calls are paid from."""

    def account(self, user_id: int) -> Account:
        """Return the account of a user.

        Raises:
            InvalidConfiguration: The user does not exist, or its configuration cannot be read.
        """


class PlatformLimits(Protocol):
    """The platform's own limits of an organization."""

    def concurrent_calls(self, organization_id: int) -> int | None:
        """Return how many calls it allows at the same time; None if it sets no limit."""


class MediaUrl(Protocol):
    """The URL at which the voice agent takes a media leg."""

    def parameters(self, call: Call) -> dict[str, str]:
        """Return the query parameters for a call that has its run."""

"""What the processes need of the voice-agent platform, whichever it is: values and Protocols.

`shared.platform.dograh` is the adapter. A second platform is a second folder beside it; nothing else changes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
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
    #: More such ids, for the runs of further calls.
    further_run_ids: tuple[int, ...] = field(default=(), compare=False)
    #: A fingerprint of the rows that an inbound call's route was read from.
    read: int = field(default=0, compare=False)
    #: The platform counts this call together with its own: it needs a slot there (`PlatformSlots`) before its run.
    shares_slots: bool = False
    #: Of a call that the platform makes, as its run names them: its leg tells neither. None where the run does not.
    caller_number: str | None = None
    called_number: str | None = None


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


@dataclass(frozen=True, slots=True, kw_only=True)
class RunAccount:
    """What a run is paid from, where organizations pay."""

    workflow_run_id: int
    workflow_id: int
    organization_id: int
    #: Owns the workflow.
    user_id: int
    #: The keys of the platform's services that the run uses, each once.
    service_keys: tuple[str, ...] = field(repr=False)
    #: The platform manages every service: the run needs a correlation id.
    is_managed: bool


class ConfigurationRow(Protocol):
    """One tenant's telephony configuration, as the platform stores it."""

    @property
    def source_id(self) -> int:
        """What the adapter knows the configuration by: never that of another one, whatever the platform's layout."""

    @property
    def organization_id(self) -> int:
        """The tenant."""

    @property
    def media_client(self) -> str | None:
        """The websocket client that connects to the voice agent; None if the configuration names none."""

    @property
    def deactivation(self) -> str | None:
        """Why it is to be deactivated at the platform as it is, as `code: text`; None if it is not."""

    def read(self) -> Configuration:
        """Return the configuration in its canonical form.

        Raises:
            InvalidConfiguration: It cannot be used; names the field and the reason.
        """


class Configurations(Protocol):
    """The tenants' telephony configurations."""

    def all(self) -> Collection[ConfigurationRow]:
        """Return the configuration of every Asterisk: all of them or, by an error, none."""

    def inactive(self) -> Collection[int]:
        """Return the ids of those that are left out, for the time being: they are inactive, and none is gone."""

    def fingerprint(self) -> str:
        """Return what is another text when any of the configurations has changed, at a far lower cost than `all`."""

    def deactivate(self, *, source_id: int, organization_id: int, reason: str) -> bool:
        """Deactivate a configuration at the platform: its owner is shown the reason, and reactivates it there.

        Args:
            reason: `code: text`.

        Returns:
            False if the platform has no inactive configurations, if this one is inactive or gone, or if one of its
            calls is being set up: to be tried again.
        """


class Routes(Protocol):
    """Which workflow serves a call, and how."""

    def inbound(self, connection_id: int, called_number: str) -> Route | NoRoute:
        """Return the route of a connection's inbound call to a number."""

    def send_inbound(
        self, connection: database.Connection, connection_id: int, called_number: str, *, run_ids: int = 1
    ) -> Callable[[], Route | NoRoute | None]:
        """Send for the route of a connection's inbound call, with an id for the run; what returns it is returned.

        To be called once the answer is there. None when the route takes more statements: `inbound` runs them.

        Args:
            run_ids: How many ids are reserved: the first one for this call.
        """

    def check_inbound(self, connection: database.Connection, connection_id: int, called_number: str, read: int) -> None:
        """Have a transaction fail with RowChanged unless the rows that a route was read from are as they were."""

    def preferred(self, organization_id: int, workflow_run_id: int | None) -> int | None:
        """Return the connection by which an organization's call is to go out, for a run that it has; None for any."""

    def outbound(self, *, connection_id: int, workflow_id: int) -> Route | NoRoute:
        """Return the route of an outbound call for a workflow, by a connection."""


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

    def is_begun(self, call: Call) -> bool:
        """Return whether the voice agent has begun a joined call's run; True, too, where it writes nothing of that."""

    def has_transfer(self, call: Call) -> bool:
        """Return whether the platform transfers the call's caller, or has done so: its run says so before it begins."""

    def note_transfer(self, call: Call) -> None:
        """Write into the run that the caller was handed over: the voice agent is out, the parties talk on."""

    def end(self, call: Call, *, media_id: str, bridge_id: str, within: database.Connection | None = None) -> None:
        """End the call's run, unless that is the platform's task.

        Args:
            within: The caller's transaction; None for one of its own.
        """


class Accounts(Protocol):
    """The accounts that calls are paid from."""

    def account(self, user_id: int) -> Account:
        """Return the account of a user.

        Raises:
            InvalidConfiguration: The user does not exist, or its configuration cannot be read.
        """

    def is_newest(self) -> bool:
        """Return whether organizations pay, and are asked about a run."""

    def run_account(self, workflow_run_id: int) -> RunAccount:
        """Return the account of a run.

        Raises:
            InvalidConfiguration: The run, or its workflow's owner, does not exist.
        """

    def note_correlation(self, workflow_run_id: int, correlation_id: str) -> None:
        """Write the id into a run by which the platform's services bill it."""


class PlatformLimits(Protocol):
    """The platform's own limits of an organization."""

    def concurrent_calls(self, organization_id: int) -> int | None:
        """Return how many calls it allows at the same time; None if it sets no limit."""


class MediaUrl(Protocol):
    """The URL at which the voice agent takes a media leg."""

    def parameters(self, call: Call) -> dict[str, str]:
        """Return the query parameters for a call that has its run."""


class SlotAnswer(StrEnum):
    """What the platform's count of calls says to one that asks for a slot."""

    TAKEN = "taken"
    #: Every slot is used.
    FULL = "full"
    #: It was not asked, or gave no answer in time. The slot may be taken all the same.
    UNKNOWN = "unknown"


class PlatformSlots(Protocol):
    """The slots in which the platform counts its own calls and ours, and its notes of which run a channel is of.

    Every method may be repeated. None raises, and each is bounded in time: callers wait for the first one. What could
    not be written is written by the scheduler afterwards, and what was left is removed by it.
    """

    def take(
        self, call: Call, *, limit: int | None, run_id: int | None = None, media_id: str | None = None
    ) -> SlotAnswer:
        """Take a call's slot, unless as many as `limit` are used; None for any number.

        Args:
            run_id: The run that the call will have, if that is known: the slot is bound to it, and the channels are
                noted, in the same round trip.
            media_id: The channel id of the media leg to come.
        """

    def bind(self, call: Call, *, media_ids: Collection[str]) -> None:
        """Bind a call's slot to its run, and note its channels. A call without a slot gets none."""

    def give_back(self, call: Call, *, media_ids: Collection[str]) -> None:
        """Give back the slot of a call and of its run, and remove the notes of its channels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A slot at the platform, and all that is written with it."""

    name: str
    organization_id: int
    #: None before there is one.
    workflow_run_id: int | None
    #: The channels that are noted to be of the run.
    channel_ids: tuple[str, ...]
    #: The leg that the caller was transferred to.
    destination_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredSlot:
    """A slot that we have taken and not given back."""

    slot: Slot
    #: By the platform's clock.
    age_seconds: float


class SlotRegistry(Protocol):
    """Every slot that we have at the platform. What asks the platform raises PlatformRedisAway."""

    def name(self, *, organization_id: int, channel_id: str, channel_created: str, entry: int) -> str:
        """Return the name of a leg's slot, whether it is registered or not."""

    def slot_of(self, call: Call, media_ids: Collection[str], *, run_id: int | None = None) -> Slot:
        """Return a call's slot.

        Args:
            run_id: The run that the call will have; None for the one that it has.
        """

    def registered(self) -> dict[str, RegisteredSlot]:
        """Return the registered slots, by name."""

    def bound_among(self, run_ids: Collection[int]) -> set[int]:
        """Return those of these runs that have a slot, whose ever it is."""

    def write(self, slot: Slot, *, limit: int | None, age_seconds: float = 0.0) -> SlotAnswer:
        """Write a slot, unless as many as `limit` are used.

        Args:
            age_seconds: How long ago its call began: the platform drops the slots of old calls.
        """

    def bind(self, call: Call, *, media_ids: Collection[str]) -> None:
        """Bind a call's slot to its run, and note its channels. A call without a slot gets none."""

    def remove(self, slot: Slot) -> None:
        """Give a slot back, with all that was written with it."""


class NoPlatformSlots:
    """The adapter without the platform's Redis: nothing is counted together."""

    def take(
        self, call: Call, *, limit: int | None, run_id: int | None = None, media_id: str | None = None
    ) -> SlotAnswer:
        return SlotAnswer.UNKNOWN

    def bind(self, call: Call, *, media_ids: Collection[str]) -> None:
        return

    def give_back(self, call: Call, *, media_ids: Collection[str]) -> None:
        return


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """A transfer that the platform makes, as it has written it down."""

    transfer_id: str
    #: The channel of the caller who is transferred.
    caller_id: str
    workflow_run_id: int | None
    #: What the platform calls it; told back as it is.
    conference_name: str | None


class TransferEvents(Protocol):
    """What the platform is told of the legs to which it transfers callers.

    All but the first two raise PlatformRedisAway.
    """

    def is_served(self) -> bool:
        """Return whether there may be a platform that makes transfers; else its legs are none of ours."""

    def refusal(self) -> str | None:
        """Return why a leg that comes for a transfer is not served; None if it is."""

    def transfer(self, transfer_id: str) -> Transfer | None:
        """Return a transfer by its id; None when the platform knows none, or has swapped the legs."""

    def transfer_to(self, channel_id: str) -> Transfer | None:
        """Return the transfer that a channel was originated for; None when the platform has not noted any, or yet."""

    def answered(self, transfer: Transfer, channel_id: str) -> bool:
        """Tell that the destination has answered; return whether the platform has heard it."""

    def failed(self, transfer: Transfer, channel_id: str, reason: str) -> bool:
        """Tell that the destination was not reached; return whether the platform has heard it."""

    def forget(self, channel_id: str) -> None:
        """Remove the notes of a destination that is gone."""


class NoTransferEvents:
    """The adapter without a platform: a leg that comes for a transfer is another program's."""

    def is_served(self) -> bool:
        return False

    def refusal(self) -> str | None:
        return None

    def transfer(self, transfer_id: str) -> Transfer | None:
        return None

    def transfer_to(self, channel_id: str) -> Transfer | None:
        return None

    def answered(self, transfer: Transfer, channel_id: str) -> bool:
        return False

    def failed(self, transfer: Transfer, channel_id: str, reason: str) -> bool:
        return False

    def forget(self, channel_id: str) -> None:
        return


NO_PLATFORM_SLOTS: PlatformSlots = NoPlatformSlots()
NO_TRANSFER_EVENTS: TransferEvents = NoTransferEvents()

"""Which channels have taken the place of others, by what an Asterisk shows: for when no event has told it.

The bridge of a call is ours. So a leg in it that is no other leg of the call has taken the place of a missing one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from shared import errors
from shared.asterisk import ari
from shared.asterisk.events import Channel
from shared.call import ids, stasis_args
from shared.call.calls import Call
from shared.call.legs import Naming
from shared.call.states import Direction, State
from shared.storage.call_store import CallStore

#: Most legs that are looked at: a PBX may put any number into one bridge, or into the app.
_LOOKED_AT = 5


def own_call(store: CallStore, call: Call, leg_id: str) -> Call | None:
    """Return the last call, beside this one, that a leg came as the caller of; None if there is none."""
    own = store.of_channel(call.connection_id, leg_id)
    return own if own is not None and own.call_id != call.call_id else None


def has_own_call(store: CallStore, call: Call, leg_id: str) -> bool:
    """True if another call has begun with a leg, and goes on with it: a resync has found it before this one came."""
    try:
        own = own_call(store, call, leg_id)
    except errors.CallUnreadable:
        # A newer release wrote it, and serves it.
        return True
    # Which it may have left to come here: its end may wait for an Asterisk or a run.
    return own is not None and own.state is not State.ENDED and own.leg_id == leg_id and not own.caller_left


def in_bridge(asterisk: ari.Ari, naming: Naming, call: Call, missing: str) -> Channel | None:
    """Return the channel in a call's bridge that has taken the place of a leg of the call; None if there is none."""
    bridge = asterisk.bridge(naming.bridge_id(call))
    if bridge is None or missing in bridge.channels:
        return None
    others = bridge.channels - {*naming.legs(call).values(), call.channel_id, *call.replacements}
    return next(_parties(asterisk, others), None)


def in_place_of_agent(asterisk: ari.Ari, naming: Naming, call: Call) -> Channel | None:
    """Return the party in a call's bridge that has taken the place of the media leg; None if there is none."""
    bridge, media_id = asterisk.bridge(naming.bridge_id(call)), naming.media_id(call)
    if bridge is None or call.leg_id not in bridge.channels or media_id in bridge.channels:
        return None
    return next(_parties(asterisk, bridge.channels - {call.leg_id}), None)


def masqueraded(asterisk: ari.Ari, call: Call, others: Iterable[str]) -> Channel | None:
    """Return which of other legs of the app has taken the place of the leg of a call that is in no bridge yet, or None.

    From a masquerade on it shows the creation time of the one before (measured).
    """
    return next((leg for leg in _parties(asterisk, others) if leg.created == call.channel_created), None)


def _parties(asterisk: ari.Ari, legs: Iterable[str]) -> Iterator[Channel]:
    """Yield those of these legs that are in the app, and neither of the product nor of the platform."""
    for leg_id in sorted(leg for leg in legs if ids.parse(leg) is None)[:_LOOKED_AT]:
        leg, is_in_app = asterisk.channel_and_place(leg_id)
        if leg is not None and is_in_app and not stasis_args.is_transfer(leg.stasis_args):
            yield leg


def left_over(asterisk: ari.Ari, call: Call, *others: str) -> list[str]:
    """Return the channels that were replaced and are still up, in silence.

    A transfer leaves the leg of the one who has made it in Stasis, without a StasisEnd. The app lists it no more. Nor
    would it list one that was bridged with another channel since, or was moved: in doubt it is not touched.

    Args:
        others: Replaced channels that are not in the call's row.
    """
    before = dict.fromkeys((call.channel_id, *call.replacements, *others))
    legs = [leg for leg in before if leg not in (call.leg_id, call.destination_id)]
    # Which app it shows tells nothing: it may have come to ours by a move.
    found = [leg for leg in map(asterisk.channel, legs) if leg is not None and leg.is_in_stasis]
    if not found:
        return []
    bridged = {leg for bridge in asterisk.bridges() for leg in bridge.channels}
    return [
        leg.id for leg in found if leg.id not in bridged and asterisk.apps_of(leg.id) <= _listing(asterisk, call, leg)
    ]


def _listing(asterisk: ari.Ari, call: Call, leg: Channel) -> frozenset[str]:
    """Return the apps that list a channel of a call wherever it is: ours, if it was made for ours."""
    is_made_for_us = call.direction is Direction.OUTBOUND and leg.id == call.channel_id
    return frozenset({asterisk.app} if is_made_for_us else ())

"""The step `teardown`: end the run, remove the legs and the bridge of every attempt, verify that they are gone.

It works from the call's row alone, at any moment of the set-up.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from shared import errors
from shared.asterisk import ari, ari_requests
from shared.asterisk.ari_requests import Bridge
from shared.asterisk.events import Channel
from shared.asterisk.rest import Request
from shared.call import facts, ids
from shared.call.legs import Naming, Role
from shared.call.states import Cause
from shared.platform.ports import NO_PLATFORM_SLOTS, PlatformSlots, Runs
from shared.storage.call_store import CallStore
from workers import successors
from workers.asterisks import Asterisks
from workers.claims import Claim, StepWork

_T = TypeVar("_T")
_Look = Request[Channel | Bridge | None]

#: The pauses before each look for a channel that was hung up. It takes up to 2 ms to go (measured, 22.10), longer on a
#: busy machine, and about 1 s while its media still connects.
_LOOKS = (0.01, 0.05, 0.2, 0.5, 1.0)


@dataclass(frozen=True, kw_only=True)
class Teardown(StepWork):
    """Ends a call: its run, its legs, its bridges."""

    asterisks: Asterisks
    naming: Naming
    runs: Runs
    store: CallStore
    platform_slots: PlatformSlots = NO_PLATFORM_SLOTS

    def work(self, claim: Claim) -> Sequence[facts.Fact]:
        call = claim.call
        # The legs go without waiting for the run, whose row the platform may have locked. That a leg has left is often
        # written meanwhile, which is no reason to remove them once more.
        legs_left = claim.ask_once(f"removal of {call.leg_id}", lambda: self._remove_all(claim))
        not_before = call.in_doubt_until
        if not legs_left and not_before is not None and self.store.now() < not_before:
            legs_left = "a request of unknown outcome may still take effect"
        else:
            not_before = None
        if not legs_left:
            media_ids = [attempt.legs[Role.MEDIA] for attempt in self.naming.attempts(call)]
            self.platform_slots.give_back(call, media_ids=media_ids)
        # With the legs all gone, the run ends in the commit that ends the call: no fail-over forgets one of them.
        run_left = self._end_run(claim, with_call=not legs_left)
        if reason := "; ".join(text for text in (run_left, legs_left) if text):
            not_before = not_before if not run_left else None
            return (facts.RemovalPending(reason=reason, run_is_over=not run_left, not_before=not_before),)
        return (facts.LegsRemoved(leg_id=call.leg_id),)

    def _end_run(self, claim: Claim, *, with_call: bool) -> str:
        """End the run; return why that failed.

        Args:
            with_call: In the transaction that ends the call.
        """
        call = claim.call
        media_id, bridge_id = self.naming.media_id(call), self.naming.bridge_id(call)
        try:
            with claim.transaction(_run_pending) if with_call else contextlib.nullcontext() as db:
                self.runs.end(call, media_id=media_id, bridge_id=bridge_id, within=db)
        except errors.PipelineError as exc:
            return _not_ended(exc)
        return ""

    def _remove_all(self, claim: Claim) -> str:
        """Remove everything the call may have left; return what could not be verified gone."""
        try:
            removal = _Removal(self.asterisks.of(claim.call, claim), claim, self.naming)
            with contextlib.suppress(errors.OutOfTime):
                removal.run()
        except errors.PipelineError as exc:
            return str(exc)
        return removal.unfinished()


def _not_ended(exc: errors.PipelineError) -> str:
    return f"the run is not ended: {exc}"


def _run_pending(exc: errors.PipelineError) -> facts.Fact:
    return facts.RemovalPending(reason=_not_ended(exc), run_is_over=False)


class _Removal:
    """Removes what a call may have left, in rounds: the requests of a round are made at the same time.

    1. Look at the caller's leg, unless it is known to have left: it is hung up only if it is still in the app, anywhere
       else it must not be touched. The same goes for the leg that the caller was transferred to.
    2. Hang up the legs and remove the bridges. For a bridge the answer is proof. If the media leg never became ready,
       the caller's leg goes first: hanging up a leg whose agent does not answer can block Asterisk, which then ends no
       channel any more (measured, 22.10).
    3. Look once for what could not be removed: it may be gone all the same, and the ARI user may only read.
    4. Look for the legs that were hung up, until they are gone.

    The look is a round of its own, because hanging up a media leg that still connects takes a second.
    """

    def __init__(self, asterisk: ari.Ari, claim: Claim, naming: Naming) -> None:
        self._asterisk = asterisk
        self._claim = claim
        self._call = claim.call
        self._attempts = list(naming.attempts(self._call))
        self._failures: list[str] = []
        self._is_continued = False
        #: The channels to be seen gone, and what to say of one that is not.
        self._looked_for: dict[str, str] = {}
        #: The looks for what could not be removed, each with what failed.
        self._not_removed: list[tuple[_Look, str]] = []

    def run(self) -> None:
        """Do it all. Raises OutOfTime when a round can no longer begin."""
        parties = self._parties() | self._replaced()
        is_here = self._call.leg_id in parties
        if is_here and self._call.continue_in_dialplan and not self._call.is_unanswered:
            self._continue_in_dialplan()
            del parties[self._call.leg_id]
        self._remove(parties)
        self._see_gone()

    def unfinished(self) -> str:
        """Return what could not be verified gone; an empty text if all is gone."""
        not_removed = [reason for _, reason in self._not_removed]
        return "; ".join(dict.fromkeys([*self._failures, *not_removed, *self._looked_for.values()]))

    def _parties(self) -> dict[str, Request[bool]]:
        """Return the legs of people that may be hung up, and how: the caller's, and the one it was transferred to."""
        call = self._call
        hang_up = ari_requests.hang_up(call.leg_id, call.hangup_cause)
        if call.is_unanswered and not call.caller_left:
            # We dial it, and it has never been in Stasis.
            return {call.leg_id: hang_up}
        looked_for = {} if call.caller_left else {call.leg_id: hang_up}
        if call.destination_id is not None:
            looked_for[call.destination_id] = ari_requests.hang_up(call.destination_id)
        if not looked_for:
            return {}
        looks: list[Request[Any]] = [*map(ari_requests.channel, looked_for)]
        *found, application = self._together(*looks, ari.application_request(self._asterisk.app))
        return {
            leg: how
            for (leg, how), seen in zip(looked_for.items(), found, strict=True)
            if self._is_here(leg, seen, application)
        }

    def _replaced(self) -> dict[str, Request[bool]]:
        """Return the channels before the caller's leg that are still up, in silence, and how to hang them up."""
        if not self._call.replacements:
            return {}
        try:
            return {leg: ari_requests.hang_up(leg) for leg in successors.left_over(self._asterisk, self._call)}
        except (errors.AsteriskUnreachable, errors.AsteriskRefused) as exc:
            self._failures.append(str(exc))
            return {}

    def _is_here(self, leg_id: str, seen: object, application: object) -> bool:
        """Return whether a leg is in our app, by looks at both; in doubt it is not."""
        if not isinstance(seen, Channel):
            return False
        is_caller = leg_id == self._call.leg_id
        if is_caller and not self._call.is_leg(leg_id, seen.created):
            # Another leg has its id.
            return False
        # Our app lists a leg that was made for it wherever it goes. By Stasis() of another app it has left for certain.
        is_made_for_us = not is_caller or ids.is_originated(self._call.channel_id)
        has_left = is_made_for_us and seen.stasis_app not in (None, self._asterisk.app)
        return not has_left and ari.is_in_app(seen, application)

    def _remove(self, parties: dict[str, Request[bool]]) -> None:
        if not self._call.media_ready:
            self._hang_up(parties)
            parties = {}
        # By the cause the listener knows that nobody has to be told of the end.
        own = [leg for attempt in self._attempts for leg in attempt.legs.values()]
        legs = {leg: ari_requests.hang_up(leg, Cause.CALL_CLEARED) for leg in own}
        self._hang_up(parties | legs, *(attempt.bridge_id for attempt in self._attempts))
        self._look_for_not_removed()

    def _hang_up(self, legs: dict[str, Request[bool]], *bridges: str) -> None:
        """Hang up legs and remove bridges in one round."""
        looks: list[_Look] = [*map(ari_requests.channel, legs), *map(ari_requests.bridge, bridges)]
        results = self._asterisk.together(*legs.values(), *map(ari_requests.remove_bridge, bridges))
        self._not_removed += [
            (look, str(result))
            for look, result in zip(looks, results, strict=True)
            if isinstance(result, errors.PipelineError)
        ]
        for leg, was_there in zip(legs, results, strict=False):
            if was_there is True:
                self._looked_for[leg] = f"channel {leg} was hung up and is still there"

    def _look_for_not_removed(self) -> None:
        """Look once for what could not be removed; keep what is not gone."""
        if self._not_removed:
            results = self._asterisk.together(*(look for look, _ in self._not_removed))
            pairs = zip(self._not_removed, results, strict=True)
            self._not_removed = [not_removed for not_removed, found in pairs if found is not None]

    def _continue_in_dialplan(self) -> None:
        """Let a refused caller continue in the dialplan, with the reason in channel variables."""
        call = self._call
        variables = {"AIP_OUTCOME": call.outcome, "AIP_REASON": call.reason, "AIP_CAUSE": call.hangup_cause}
        requests = [ari_requests.set_variable(call.leg_id, name, str(value)) for name, value in variables.items()]
        if not all(isinstance(result, bool) for result in self._together(*requests)):
            return
        (result,) = self._together(ari_requests.continue_in_dialplan(call.leg_id))
        if isinstance(result, bool):
            complaint = f"channel {call.leg_id} was continued in the dialplan and is still in the app"
            self._looked_for[call.leg_id] = complaint
            self._is_continued = True

    def _see_gone(self) -> None:
        for pause in _LOOKS:
            if not self._looked_for:
                return
            self._claim.pause(pause)
            legs = list(self._looked_for)
            results = self._together(*map(ari_requests.channel, legs))
            for leg, result in zip(legs, results, strict=True):
                if not self._is_still_there(leg, result):
                    del self._looked_for[leg]

    def _is_still_there(self, leg_id: str, seen: Channel | errors.PipelineError | None) -> bool:
        if self._is_continued and leg_id == self._call.leg_id:
            if not isinstance(seen, Channel) or not seen.is_in_stasis:
                return False
            leg, application = self._together(*ari.place_requests(leg_id, self._asterisk.app))
            return self._is_here(leg_id, leg, application)
        return isinstance(seen, Channel)

    def _together(self, *requests: Request[_T]) -> list[_T | errors.PipelineError]:
        """Make the requests of one round; keep what fails."""
        results = self._asterisk.together(*requests)
        self._failures += [str(result) for result in results if isinstance(result, errors.PipelineError)]
        return results

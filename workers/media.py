"""The step `media`: create the media leg and the bridge, in parallel, under ids never used before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shared import errors
from shared.asterisk import ari, ari_requests
from shared.call import facts
from shared.call.calls import Call
from shared.call.legs import Attempt, Naming, Role
from shared.platform.ports import MediaUrl
from workers.asterisks import Asterisks
from workers.claims import Claim, StepWork


@dataclass(frozen=True, kw_only=True)
class MediaCreation(StepWork):
    """Creates the media leg and the bridge of an attempt whose number is stored already."""

    asterisks: Asterisks
    naming: Naming
    media_url: MediaUrl
    #: Returns the tag of this worker's broker session: the media leg's StasisStart brings it back.
    tag: Callable[[], str]

    def work(self, claim: Claim) -> Sequence[facts.Fact]:
        call = claim.call
        asterisk = self.asterisks.of(call, claim)
        if call.attempt > 1:
            remove(asterisk, self.naming.attempt(call, call.attempt - 1))
        return (self._create(asterisk, call),)

    def _create(self, asterisk: ari.Ari, call: Call) -> facts.Fact:
        attempt = self.naming.attempt(call, call.attempt)
        client, parameters = call.media_client or "", self.media_url.parameters(call)
        results = asterisk.together(
            ari_requests.create_media(
                attempt.legs[Role.MEDIA], app=asterisk.app, client=client, parameters=parameters, args=self.tag()
            ),
            ari_requests.create_bridge(attempt.bridge_id),
        )
        failures = [result for result in results if isinstance(result, errors.PipelineError)]
        refusals = [failure for failure in failures if isinstance(failure, errors.PermanentError)]
        unknown = [failure for failure in failures if failure not in refusals]
        # A refusal decides nothing while the other request may yet take effect.
        if unknown:
            return facts.LegsUnknown(attempt=call.attempt, nonce=call.nonce, reason=str(unknown[0]))
        if refusals:
            return facts.LegsRefused(attempt=call.attempt, nonce=call.nonce, reason=_explained(refusals[0], client))
        return facts.LegsCreated(attempt=call.attempt, nonce=call.nonce)


def remove(asterisk: ari.Ari, attempt: Attempt) -> None:
    """Hang up an attempt's legs and remove its bridge, as far as Asterisk lets it."""
    legs = [ari_requests.hang_up(leg) for leg in attempt.legs.values()]
    asterisk.together(*legs, ari_requests.remove_bridge(attempt.bridge_id))


def _explained(refusal: errors.PermanentError, client: str) -> str:
    if isinstance(refusal, errors.AsteriskRefused) and refusal.status == 400:
        return f"{refusal} (is the websocket client {client!r} in websocket_client.conf?)"
    return str(refusal)

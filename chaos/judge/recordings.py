"""Listens to the recordings of both ends of the calls that were sampled."""

from __future__ import annotations

from pathlib import Path

from chaos.judge import checks, tones
from chaos.judge.evidence import Evidence, Heard
from chaos.judge.spec import Spec


def listen(spec: Spec, evidence: Evidence) -> dict[str, Heard]:
    """Return what both ends of each sampled call that was bridged hear, by leg; a missing recording is silence."""
    return {
        leg.id: Heard(
            by_caller=_caller(spec.caller_recordings / f"{leg.id}.sln", spec.agent_hz),
            by_agent=max(
                (
                    _agent(spec.agent_recordings / f"{row.workflow_run_id}.ulaw", spec.caller_hz)
                    for row in evidence.rows.get(leg.id, ())
                ),
                default=0.0,
            ),
        )
        for leg in evidence.callers
        if (offer := evidence.deeds.offers.get(leg.id)) and offer.sampled and evidence.bridged_at(leg) is not None
    }


def _caller(path: Path, hz: float) -> float:
    samples = tones.linear(path.read_bytes() if path.exists() else b"")
    return tones.tone_seconds(samples, hz)


def _agent(path: Path, hz: float) -> float:
    samples = tones.ulaw(path.read_bytes() if path.exists() else b"")
    return tones.tone_seconds(samples, hz, enough=checks.AGENT_HEARS_SECONDS)

"""Which callers are admitted before their call is first written."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import MagicMock

import pytest

from shared.call.calls import Call
from shared.call.states import Direction
from tests.support.calls import RECEIVED
from workers.admission import Admission
from workers.step_ports import NoQuota


def admission(*, asks_network: bool = False) -> Admission:
    quota = NoQuota()
    quota.asks_network = asks_network
    others = ("connections", "routes", "slots", "slot_count", "runs", "asterisks", "naming", "limits")
    return Admission(quota=quota, **{name: MagicMock() for name in others})


def test_a_caller_whose_admission_asks_postgres_only_is_admitted_quickly() -> None:
    assert admission().is_quick(RECEIVED)


@pytest.mark.parametrize(
    ("call", "asks_network"),
    [
        pytest.param(RECEIVED, True, id="the quota service may take seconds"),
        pytest.param(replace(RECEIVED, direction=Direction.OUTBOUND), False, id="a platform's leg is looked at first"),
        # While it is not written, its end would find the entry before and change nothing.
        pytest.param(replace(RECEIVED, entry=2), False, id="a channel that came back"),
    ],
)
def test_any_other_call_is_written_first(call: Call, *, asks_network: bool) -> None:
    assert not admission(asks_network=asks_network).is_quick(call)

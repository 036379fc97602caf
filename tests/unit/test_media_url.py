"""The media URL: its parameters, and a token as the platform computes it, for one run of one user only."""

from __future__ import annotations

import hashlib
import hmac
from types import SimpleNamespace
from typing import cast

import pytest

from shared.call.calls import Call
from shared.platform.dograh import media_url

WHOSE = {"workflow_id": 1, "user_id": 2, "workflow_run_id": 3}


def test_a_token_is_the_hmac_the_endpoint_expects() -> None:
    expected = hmac.new(b"secret", b"1:2:3", hashlib.sha256).hexdigest()
    assert media_url.token("secret", **WHOSE) == expected
    assert media_url.valid(expected, "secret", **WHOSE)


@pytest.mark.parametrize("field", sorted(WHOSE))
def test_a_token_is_of_no_other_run_user_or_workflow(field: str) -> None:
    token = media_url.token("secret", **WHOSE)
    assert not media_url.valid(token, "secret", **(WHOSE | {field: 9}))


@pytest.mark.parametrize(
    "candidate",
    ["", "x", "ü", "0" * 64, media_url.token("other", **WHOSE), media_url.token("secret", **WHOSE).upper()],
)
def test_no_other_text_is_a_token(candidate: str) -> None:  # fmt: skip
    assert not media_url.valid(candidate, "secret", **WHOSE)


def served(**changes: int | None) -> Call:
    values = {**WHOSE, **changes}
    return cast(Call, SimpleNamespace(**values))


def test_the_parameters_name_the_run_and_carry_its_token() -> None:
    ids = {"workflow_id": "1", "user_id": "2", "workflow_run_id": "3"}
    assert media_url.MediaUrl(None).parameters(served()) == ids
    assert media_url.MediaUrl("secret").parameters(served()) == ids | {"token": media_url.token("secret", **WHOSE)}


@pytest.mark.parametrize("field", sorted(WHOSE))
def test_a_call_without_a_run_has_no_media_url(field: str) -> None:
    with pytest.raises(AssertionError):
        media_url.MediaUrl(None).parameters(served(**{field: None}))

"""The media URL: its parameters, and a token as the platform computes it, for one run of one user only."""

from __future__ import annotations

import hashlib
import hmac
from types import SimpleNamespace
from typing import cast

import pytest

from shared.call.calls import Call
from shared.platform.dograh import layouts, media_url

WHOSE: dict[str, int | None] = {"workflow_id": 1, "user_id": 2, "workflow_run_id": 3}


def test_a_token_is_the_hmac_the_endpoint_expects() -> None:
    expected = hmac.new(b"secret", b"1:2:3", hashlib.sha256).hexdigest()
    assert media_url.token("secret", WHOSE) == expected
    assert media_url.valid(expected, "secret", WHOSE)


@pytest.mark.parametrize("field", sorted(WHOSE))
def test_a_token_is_of_no_other_run_user_or_workflow(field: str) -> None:
    token = media_url.token("secret", WHOSE)
    assert not media_url.valid(token, "secret", WHOSE | {field: 9})


@pytest.mark.parametrize(
    "candidate",
    ["", "x", "ü", "0" * 64, media_url.token("other", WHOSE), media_url.token("secret", WHOSE).upper()],
)
def test_no_other_text_is_a_token(candidate: str) -> None:  # fmt: skip
    assert not media_url.valid(candidate, "secret", WHOSE)


def served(**changes: int | None) -> Call:
    values = {**WHOSE, **changes}
    return cast(Call, SimpleNamespace(**values))


def test_the_parameters_name_the_run_and_carry_its_token() -> None:
    ids = {"workflow_id": "1", "user_id": "2", "workflow_run_id": "3"}
    assert media_url.MediaUrl(None).parameters(served()) == ids
    assert media_url.MediaUrl("secret").parameters(served()) == ids | {"token": media_url.token("secret", WHOSE)}


@pytest.mark.parametrize("field", sorted(WHOSE))
def test_a_call_without_a_run_has_no_media_url(field: str) -> None:
    with pytest.raises(AssertionError):
        media_url.MediaUrl(None).parameters(served(**{field: None}))


class Watch:
    """Tells one layout."""

    def __init__(self, layout: layouts.Layout) -> None:
        self._layout = layout

    def found(self) -> layouts.Found:
        return layouts.Found(layout=self._layout)


def test_on_the_newest_layout_the_parameters_name_the_organization_and_so_does_the_token() -> None:
    watch = cast(layouts.Watch, Watch(layouts.Layout.NEWEST))
    ids: dict[str, int | None] = {"workflow_id": 1, "organization_id": 5, "workflow_run_id": 3}
    parameters = media_url.MediaUrl("secret", watch=watch).parameters(served(organization_id=5))
    expected = hmac.new(b"secret", b"1:5:3", hashlib.sha256).hexdigest()
    assert parameters == {name: str(value) for name, value in ids.items()} | {"token": expected}


def test_a_secret_that_only_we_know_signs_no_token_for_the_newest_platform() -> None:
    signed = {
        layout: "token"
        in media_url.MediaUrl(None, derived_secret="ours", watch=cast(layouts.Watch, Watch(layout))).parameters(
            served(organization_id=5)
        )
        for layout in layouts.Layout
    }
    assert signed == {layouts.Layout.FEBRUARY_2026: True, layouts.Layout.NEWEST: False}

"""The audit of logs that ends every pipeline of the tests finds what it looks for, and looks for what is logged."""

from __future__ import annotations

import base64
import contextlib
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest

from devstack import fleet, log_audit
from devstack.pipeline import SECRET_KEY, Pipeline
from devstack.tenants import PASSWORD
from shared.process import sealing
from tests.checks import checkout

pytestmark = pytest.mark.services

FIRST_KEY, SECOND_KEY = (key.strip() for key in SECRET_KEY.split(","))


@pytest.mark.parametrize(
    "told",
    [
        PASSWORD,
        quote(PASSWORD),
        quote(PASSWORD, safe=""),
        quote_plus(PASSWORD),
        base64.b64encode(f"voiceai:{PASSWORD}".encode()).decode(),
        FIRST_KEY,
        SECOND_KEY,
        sealing.media_secret(FIRST_KEY),
        "/ws/ari?token=1.2.3",
        *log_audit.FAILURES,
    ],
)
def test_no_log_of_a_process_shows_a_credential_or_a_failure_of_its_own(
    database_url: str, redis_url: str, tmp_path: Path, told: str
) -> None:
    log = tmp_path / "worker.log"
    with Pipeline(database_url=database_url, redis_url=redis_url, logs=tmp_path):
        log.write_text("calm\nGET /ws/ari?token=[redacted]\n")
    with (
        pytest.raises(AssertionError, match="worker"),
        Pipeline(database_url=database_url, redis_url=redis_url, logs=tmp_path),
    ):
        log.write_text(f"calm\nerror in {told} and more\n")


@pytest.mark.parametrize("which", ["database", "redis"])
def test_no_log_of_a_process_shows_the_password_of_a_server(
    database_url: str, redis_url: str, tmp_path: Path, which: str
) -> None:
    told = {"database": database_url, "redis": redis_url}[which]
    with (
        pytest.raises(AssertionError, match="shows a credential"),
        Pipeline(database_url=database_url, redis_url=redis_url, logs=tmp_path),
    ):
        (tmp_path / "worker.log").write_text(f"cannot reach {told}\n")


@pytest.mark.parametrize(("line", "is_shown"), [("to +5551234567", True), ("id 15551234567", False), ("x 100", False)])
def test_no_log_of_a_process_shows_a_number(tmp_path: Path, line: str, *, is_shown: bool) -> None:
    (tmp_path / "worker.log").write_text(f"calm\n{line}\n")
    with pytest.raises(AssertionError, match="a number") if is_shown else contextlib.nullcontext():
        log_audit.assert_clean(
            tmp_path, secrets=(), user="u", password="a password", numbers=("5551234567", "100", "anonymous")
        )


def test_what_the_logs_are_searched_for_is_what_the_product_logs() -> None:
    events = {event for path in checkout.product_files(".py") for _, event in checkout.log_events(path)}
    of_python = {"Fatal Python error"}
    assert {*log_audit.FAILURES, fleet.SOCKET_OPENED} - of_python <= events

"""Every pipeline of these tests looks through its logs when it ends; here it is seen that it would find something."""

from __future__ import annotations

import base64
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest

from devstack import log_audit
from devstack.pipeline import SECRET_KEY, Pipeline
from devstack.tenants import PASSWORD
from shared.process import sealing

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

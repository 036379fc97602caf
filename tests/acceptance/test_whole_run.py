"""What only the logs of the whole run can show."""

from __future__ import annotations

import base64
from pathlib import Path
from urllib.parse import quote, quote_plus, urlsplit

import pytest

from devstack import servers
from shared import sealing
from tests.acceptance.pipeline import PASSWORD, SECRET_KEY

pytestmark = [pytest.mark.services, pytest.mark.whole_run]


def spellings(secret: str) -> set[str]:
    """A secret as it is, in a URL, and in a Basic header."""
    return {secret, quote(secret), quote(secret, safe=""), quote_plus(secret)}


def test_no_credential_is_in_any_log_line_of_the_run(
    all_logs: Path, postgres_server: servers.Postgres, redis_server: servers.Redis
) -> None:
    keys = [key.strip() for key in SECRET_KEY.split(",")]
    credentials = base64.b64encode(f"voiceai:{PASSWORD}".encode()).decode()
    secrets = {PASSWORD, *keys, credentials, sealing.media_secret(keys[0])}
    secrets |= {urlsplit(server.url).password or "" for server in (postgres_server, redis_server)} - {""}
    logs = list(all_logs.rglob("*.log"))
    if not logs:
        pytest.skip("no process ran before this test")
    for log in logs:
        for number, line in enumerate(log.read_text(errors="replace").splitlines(), 1):
            found = [secret for secret in secrets if any(spelling in line for spelling in spellings(secret))]
            assert not found, f"{log.parent.name}/{log.name}:{number} shows a credential"
            assert "token=" not in line.replace("token=[redacted]", ""), f"{log}:{number} shows a media token"


def test_no_process_of_the_run_ended_by_an_error_of_its_own(all_logs: Path) -> None:
    for log in all_logs.rglob("*.log"):
        text = log.read_text(errors="replace")
        assert "a job failed" not in text, text[-3000:]
        assert "Fatal Python error" not in text, text[-3000:]

"""The platform's quota service, by which callers wait and are refused with `QUOTA=http`."""

from __future__ import annotations

from urllib.parse import urlsplit

from shared.operator.checks.findings import Finding, ok, warning, wrong
from shared.platform.dograh.quota_client import Question, QuotaClient

_CONNECT_SECONDS = 2.0
_SECONDS = 3.0
_WHAT = "quota service"


def check(quota: str, url: str) -> list[Finding]:
    """Check whether the service answers at all: it is shown no key, and asked about nothing.

    Args:
        quota: QUOTA.
        url: MPS_API_URL, which can be used.
    """
    if quota != "http":
        return [ok(_WHAT, f"not asked (QUOTA={quota})")]
    client = QuotaClient(url, connect_seconds=_CONNECT_SECONDS, requests_at_once=1)
    (reply,) = client.ask([Question(method="GET", path="/", headers={})], _SECONDS)
    where = urlsplit(url).netloc
    if reply.status is None:
        return [
            wrong(
                _WHAT,
                f"{where}: {reply.failure}",
                "is MPS_API_URL right, and does a firewall let this machine through? Until then each caller waits for"
                " it, and QUOTA_UNREACHABLE says whether calls are served",
            )
        ]
    if reply.status >= 500:
        return [warning(_WHAT, f"{where} answers {reply.status}", "look at the log of the service, or of its proxy")]
    return [ok(_WHAT, f"{where} answers")]

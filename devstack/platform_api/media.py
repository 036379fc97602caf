"""The platform's media endpoint: which legs it accepts, and how it refuses the others."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass

from devstack.platform_api.layouts import Layout
from devstack.platform_api.runs import Configuration, Run, Runs

PATH = "/api/v1/telephony/ws/ari"
#: What the query has to name; without it the socket is not accepted: Asterisk is answered 403.
QUERY = {
    "2026-02": ("workflow_id", "user_id", "workflow_run_id"),
    "newest": ("workflow_id", "organization_id", "workflow_run_id"),
}
#: Anything that the checks do not foresee.
BROKEN = 1011


class Refused(Exception):
    """The socket was accepted, and is closed with this code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True, kw_only=True)
class Admission:
    """The checks of a media leg, one after the other, as the platform makes them.

    Args:
        token_secret: Signs tokens (newest layout); None: none is looked at.
        enforces_token: With False a wrong token is noted only.
    """

    runs: Runs
    layout: Layout
    token_secret: str | None
    enforces_token: bool

    def is_complete(self, query: Mapping[str, str]) -> bool:
        """Whether the query names all that it has to."""
        return all(query.get(name) for name in QUERY[self.layout])

    async def admit(self, query: Mapping[str, str]) -> tuple[Run, Configuration]:
        """Return the run of a leg, which is running from here on. Raises Refused."""
        try:
            workflow_id, tenant_id, run_id = (int(query[name]) for name in QUERY[self.layout])
        except ValueError:
            raise Refused(BROKEN, "an id is no number") from None
        if self.layout == "newest" and self.token_secret is not None and self.enforces_token:
            wanted = token(self.token_secret, workflow_id, tenant_id, run_id)
            if not hmac.compare_digest(query.get("token", "").encode(), wanted.encode()):
                raise Refused(4401, "unauthorized")
        run = await self._run(run_id, workflow_id, tenant_id)
        if run.state != "initialized":
            raise Refused(4409, f"run is {run.state}")
        configuration = await self._configuration(run)
        await self.runs.set_running(run_id)
        if run.definition_id is None:
            raise Refused(BROKEN, "the run has no definition")
        return run, configuration

    async def _run(self, run_id: int, workflow_id: int, tenant_id: int) -> Run:
        run = await self.runs.of(run_id)
        if run is None or (self.layout == "newest" and run.organization_id != tenant_id):
            raise Refused(4404, "run not found")
        workflow = await self.runs.workflow(workflow_id)
        if workflow is None or workflow["organization_id"] != run.organization_id:
            raise Refused(4404, "workflow not found")
        if run.workflow_id != workflow_id:
            raise Refused(4400, "the run belongs to another workflow")
        return run

    async def _configuration(self, run: Run) -> Configuration:
        provider = run.initial.get("provider")
        if "smallwebrtc" in (run.mode, provider):
            raise Refused(4400, "smallwebrtc")
        if not provider:
            raise Refused(4400, "the run has no provider")
        configuration = await self.runs.configuration(
            run.organization_id, run.initial.get("telephony_configuration_id")
        )
        if configuration is None:
            raise Refused(BROKEN, "no active configuration")
        if configuration.provider != provider:
            raise Refused(4400, "the configuration is of another provider")
        return configuration


def token(secret: str, workflow_id: int, organization_id: int, run_id: int) -> str:
    """Return the token of a run's media URL in the newest layout."""
    text = f"{workflow_id}:{organization_id}:{run_id}"
    return hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()

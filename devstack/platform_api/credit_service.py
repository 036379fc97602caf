"""The platform's quota service, in its three contracts: by user's key, by organization's keys, and by account."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from devstack.platform_api.layouts import Layout

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
#: Of the body of an authorization.
_AUTHORIZATION = {"workflow_run_id", "service_key", "require_correlation_id", "metadata", "minimum_credits"}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request, as it came."""

    line: str
    headers: dict[str, str]
    body: Any


@dataclass(kw_only=True)
class CreditService:
    """Answers for the credits that it was told; the fields may be changed at any time.

    `POST …/service-keys/usage` is 2026-02's. The newest layout has `GET …/service-keys/usage/self`; where the
    platform manages the services, by `POST …/service-keys/run-authorization/self`; on the hosted platform by
    `POST …/billing/accounts/{organization}/run-authorization`.
    """

    layout: Layout
    #: Authenticates the hosted platform's calls; None: any is accepted.
    secret: str | None = None
    #: Service key → credits left; an unknown key has `otherwise`.
    by_key: dict[str, float] = field(default_factory=dict)
    #: Organization → credits left.
    by_organization: dict[int, float] = field(default_factory=dict)
    otherwise: float = 100.0
    #: False: a service of an earlier release, which has `POST …/service-keys/correlation-id/self` instead.
    authorizes_by_key: bool = True
    #: Whether an authorization that asks for a correlation id gets one.
    gives_correlation: bool = True
    #: Answer everything by this status; 0 breaks the connection.
    status: int | None = None
    delay_seconds: float = 0.0
    asked: list[Asked] = field(default_factory=list)

    def routes(self) -> list[web.RouteDef]:
        if self.layout == "2026-02":
            return [web.post("/api/v1/service-keys/usage", self._asked(self._usage_of_body))]
        authorization = "/api/v1/billing/accounts/{organization}/run-authorization"
        return [
            web.get("/api/v1/service-keys/usage/self", self._asked(self._usage_of_bearer)),
            web.post("/api/v1/service-keys/run-authorization/self", self._asked(self._authorization_of_bearer)),
            web.post("/api/v1/service-keys/correlation-id/self", self._asked(self._correlation)),
            web.post(authorization, self._asked(self._authorization)),
        ]

    def _asked(self, answer: Callable[[web.Request, Any], web.Response]) -> Handler:
        """Note a request, then answer it, unless the service was told to be ill."""

        async def handle(request: web.Request) -> web.Response:
            text = await request.text()
            body = json.loads(text) if text else {}
            self.asked.append(Asked(line=f"{request.method} {request.path}", headers=dict(request.headers), body=body))
            await asyncio.sleep(self.delay_seconds)
            if self.status == 0 and request.transport is not None:
                request.transport.abort()
            if self.status is not None:
                return web.Response(status=self.status or 500, text="{}")
            return answer(request, body)

        return handle

    def _usage_of_body(self, request: web.Request, body: Any) -> web.Response:
        if not (request.headers.get("X-Secret-Key") or request.headers.get("X-Created-By")):
            return _refused(401, "neither X-Secret-Key nor X-Created-By")
        return self._usage(str(body.get("service_key", "")))

    def _usage_of_bearer(self, request: web.Request, body: Any) -> web.Response:
        key = _bearer(request)
        return self._usage(key) if key else _refused(401, "no service key")

    def _usage(self, key: str) -> web.Response:
        left = self.by_key.get(key, self.otherwise)
        return web.json_response({"total_credits_used": 1.5, "remaining_credits": left})

    def _authorization_of_bearer(self, request: web.Request, body: Any) -> web.Response:
        if not self.authorizes_by_key:
            return _refused(404, "Not Found")
        key = _bearer(request)
        if not key:
            return _refused(401, "no service key")
        return self._authorized(body, self.by_key.get(key, self.otherwise), _AUTHORIZATION - {"service_key"})

    def _correlation(self, request: web.Request, body: Any) -> web.Response:
        if not _bearer(request):
            return _refused(401, "no service key")
        return web.json_response({"correlation_id": _correlation_id() if self.gives_correlation else None})

    def _authorization(self, request: web.Request, body: Any) -> web.Response:
        organization = request.match_info["organization"]
        is_known = self.secret in (None, request.headers.get("X-Secret-Key"))
        if not is_known or request.headers.get("X-Organization-Id") != organization:
            return _refused(401, "unauthorized")
        return self._authorized(body, self.by_organization.get(int(organization), self.otherwise), _AUTHORIZATION)

    def _authorized(self, body: Any, left: float, fields: set[str]) -> web.Response:
        if missing := fields - set(body):
            return _refused(422, f"missing: {sorted(missing)}")
        has_id = body["require_correlation_id"] and self.gives_correlation
        return web.json_response({
            "allowed": left >= body["minimum_credits"],
            "remaining_credits": f"{left:.4f}",
            "correlation_id": _correlation_id() if has_id else None,
        })  # fmt: skip


def _bearer(request: web.Request) -> str:
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    return key if scheme == "Bearer" else ""


def _correlation_id() -> str:
    return f"c-{uuid.uuid4().hex[:12]}"


def _refused(status: int, detail: str) -> web.Response:
    return web.json_response({"detail": detail}, status=status)

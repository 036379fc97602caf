"""The quota of the newest layout: asked about a run, in its two contracts, of the stand-in of the service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
import pytest
import structlog
from psycopg.rows import dict_row

from devstack.platform_api.server import Options
from devstack.platform_api.stand_in import StandIn
from devstack.tenants import Tenant, closing_tenant
from shared.asterisk import rest
from shared.call import facts
from shared.call.limits import Limits
from shared.call.states import Cause
from shared.platform import dograh
from shared.platform.dograh.quota_client import QuotaClient
from shared.platform.dograh.quota_service import QuotaService
from shared.storage import database
from tests.support.calls import ADMITTED

pytestmark = [pytest.mark.services, pytest.mark.parametrize("layout", ["newest"], indirect=True)]

SECRET = "hunter2-secret"
KEYS = ("mps-hunter2-a", "mps-hunter2-b")
LIMITS = Limits(quota_seconds=1.0, connect_seconds=0.5)
USED_UP = facts.Refused(reason="the credits are used up", hangup_cause=Cause.NOT_ALLOWED)
USAGE = "GET /api/v1/service-keys/usage/self"
OWN = "POST /api/v1/service-keys/run-authorization/self"
CORRELATION = "POST /api/v1/service-keys/correlation-id/self"


def byok(**services: object) -> dict[str, Any]:
    return {"version": 2, "mode": "byok", "byok": {"mode": "pipeline", "pipeline": services}}


def managed(*keys: str) -> dict[str, Any]:
    return {"version": 2, "mode": "dograh", "dograh": {"api_key": list(keys) if len(keys) > 1 else keys[0]}}


BYOK = byok(llm={"provider": "dograh", "api_key": list(KEYS)}, stt={"provider": "openai", "api_key": "sk"})


class Budget:
    """Lets requests through, and remembers them."""

    def __init__(self) -> None:
        self.requests: list[rest.RequestRecord] = []

    def seconds_left(self) -> float:
        return 7.0

    def record_request(self, request: rest.RequestRecord) -> None:
        self.requests.append(request)


@dataclass(kw_only=True)
class Scene:
    """A run of the newest layout, and the service."""

    stand_in: StandIn
    db: database.Database
    rows: psycopg.Connection[dict[str, Any]]
    tenant: Tenant
    run_id: int
    budget: Budget = field(default_factory=Budget)

    def pay(self, document: object, workflow: object = None) -> None:
        """Write the organization's model configuration, and the definition's own."""
        self.rows.execute(
            "INSERT INTO organization_configurations (organization_id, key, value) VALUES (%s, %s, %s)",
            [self.tenant.organization_id, "MODEL_CONFIGURATION_V2", json.dumps(document)],
        )
        self.rows.execute("UPDATE workflow_definitions SET workflow_configurations = %s", [json.dumps(workflow or {})])

    def ask(self, contract: str = "auto", *, secret: str | None = None, **options: Any) -> facts.Refused | None:
        client = QuotaClient(options.pop("url", self.stand_in.url), connect_seconds=0.5, requests_at_once=4)
        service = QuotaService(
            dograh.Accounts(self.db), client, LIMITS, secret=secret, contract=contract, **options  # type: ignore[arg-type]
        )  # fmt: skip
        assert service.is_about_runs()
        return service.authorization(replace(ADMITTED, workflow_run_id=self.run_id), budget=self.budget)

    @property
    def credits(self) -> Any:
        return self.stand_in.api.credits

    @property
    def lines(self) -> list[str]:
        return sorted(asked.line for asked in self.credits.asked)

    @property
    def initial(self) -> dict[str, Any]:
        row = self.rows.execute("SELECT initial_context FROM workflow_runs").fetchone()
        assert row is not None
        found: dict[str, Any] = row["initial_context"]
        return found


@pytest.fixture
def scene(database_url: str, redis_url: str) -> Iterator[Scene]:
    db = database.Database(database_url, size=2)
    db.open()
    options = Options(layout="newest", database_url=database_url, redis_url=redis_url, credit_secret=SECRET)
    with (
        psycopg.connect(database_url, autocommit=True, row_factory=dict_row) as rows,
        closing_tenant(database_url) as tenant,
        StandIn(options) as stand_in,
    ):
        row = rows.execute(
            "INSERT INTO workflow_runs (name, workflow_id, definition_id, mode, initial_context, gathered_context,"
            " usage_info, cost_info, annotations) VALUES ('n', %s, %s, 'ari', '{\"theirs\": 1e400}', '{}', '{}', '{}',"
            " '{}') RETURNING id",
            [tenant.workflow_id, tenant.definition_id],
        ).fetchone()
        assert row is not None
        yield Scene(stand_in=stand_in, db=db, rows=rows, tenant=tenant, run_id=row["id"])
    db.close()


# ── a self-hosted platform ───────────────────────────────────────────────────────────────────────────────────────────


def test_each_key_of_the_organization_s_services_asks_for_its_own_credits(scene: Scene) -> None:
    scene.pay(BYOK)
    assert scene.ask() is None
    assert scene.lines == [USAGE, USAGE]
    assert sorted(asked.headers["Authorization"] for asked in scene.credits.asked) == [f"Bearer {key}" for key in KEYS]
    assert [(asked.what, asked.answer) for asked in scene.budget.requests] == [(USAGE, "200")] * 2
    scene.credits.by_key[KEYS[1]] = 0.05
    assert scene.ask() == USED_UP


def test_the_definition_that_runs_has_keys_of_its_own(scene: Scene) -> None:
    own = byok(embeddings={"provider": "dograh", "api_key": "own"})
    scene.pay(BYOK, {"model_configuration_v2_override": own})
    assert scene.ask() is None
    assert [asked.headers["Authorization"] for asked in scene.credits.asked] == ["Bearer own"]


@pytest.mark.parametrize("document", [{}, byok(llm={"provider": "openai", "api_key": "sk"})])
def test_who_uses_none_of_the_platform_s_services_is_not_asked_for(scene: Scene, document: object) -> None:
    scene.pay(document)
    assert scene.ask() is None
    assert scene.lines == []


def test_a_managed_run_gets_its_correlation_id(scene: Scene) -> None:
    scene.pay(managed(*KEYS))
    assert scene.ask() is None
    assert scene.lines == [USAGE, OWN]
    (asked,) = [asked for asked in scene.credits.asked if asked.line == OWN]
    assert asked.headers["Authorization"] == f"Bearer {KEYS[0]}"
    assert asked.body == {
        "workflow_run_id": scene.run_id, "require_correlation_id": True, "minimum_credits": 0.1,
        "metadata": {"workflow_id": scene.tenant.workflow_id},
    }  # fmt: skip
    assert scene.initial["mps_correlation_id"].startswith("c-")
    row = scene.rows.execute("SELECT initial_context::text AS it FROM workflow_runs").fetchone()
    assert row is not None
    assert '"theirs": 1e400' in row["it"], "what others wrote stays as it was"


def test_an_earlier_service_is_asked_for_credits_and_correlation_id_apart(scene: Scene) -> None:
    scene.pay(managed(*KEYS))
    scene.credits.authorizes_by_key = False
    assert scene.ask() is None
    assert scene.lines == [USAGE, USAGE, CORRELATION, OWN]
    assert scene.initial["mps_correlation_id"].startswith("c-")


# ── the platform's own installation ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("document", "is_managed"), [(BYOK, False), (managed(KEYS[0]), True)])
def test_the_organization_s_account_is_asked_about_the_run(scene: Scene, document: object, *, is_managed: bool) -> None:
    scene.pay(document)
    assert scene.ask(secret=SECRET) is None
    (asked,) = scene.credits.asked
    organization_id = scene.tenant.organization_id
    assert asked.line == f"POST /api/v1/billing/accounts/{organization_id}/run-authorization"
    assert (asked.headers["X-Secret-Key"], asked.headers["X-Organization-Id"]) == (SECRET, str(organization_id))
    assert asked.body == {
        "workflow_run_id": scene.run_id,
        "service_key": KEYS[0] if is_managed else None,
        "require_correlation_id": is_managed,
        "metadata": {"dograh_user_id": str(scene.tenant.user_id), "workflow_id": scene.tenant.workflow_id},
        "minimum_credits": 0.1,
    }
    assert ("mps_correlation_id" in scene.initial) == is_managed
    scene.credits.by_organization[organization_id] = 0.05
    assert scene.ask("hosted", secret=SECRET) == USED_UP


def test_a_managed_run_without_a_correlation_id_is_refused(scene: Scene) -> None:
    scene.pay(managed(KEYS[0]))
    scene.credits.gives_correlation = False
    for secret in (SECRET, None):
        for setting in ("platform", "allow", "refuse"):
            refused = scene.ask(secret=secret, when_unreachable=setting)
            assert refused is not None
            assert refused.reason == "quota service unreachable: the answer has no correlation_id"
    assert "mps_correlation_id" not in scene.initial


# ── no usable answer ─────────────────────────────────────────────────────────────────────────────────────────────────

#: Document, status of the service (None: it is not there), setting → whether the call is refused.
UNREACHABLE = [
    (BYOK, None, "platform", False),
    (BYOK, None, "refuse", True),
    (BYOK, None, "allow", False),
    (BYOK, 500, "platform", True),
    (BYOK, 500, "allow", False),
    (BYOK, 429, "platform", True),
    (managed(KEYS[0]), None, "platform", True),
    (managed(KEYS[0]), None, "allow", True),
    (managed(KEYS[0]), 500, "platform", True),
]


@pytest.mark.parametrize("secret", [None, SECRET], ids=["oss", "hosted"])
@pytest.mark.parametrize(("document", "status", "setting", "is_refused"), UNREACHABLE)
def test_a_service_that_is_not_reached_lets_through_what_needs_nothing_of_it_and_anything_else_refuses(
    scene: Scene, document: object, status: int | None, setting: str, secret: str | None, *, is_refused: bool
) -> None:
    scene.pay(document)
    scene.credits.status = status
    options = {"url": "http://127.0.0.1:1"} if status is None else {}
    refused = scene.ask(secret=secret, when_unreachable=setting, **options)
    assert (refused is not None) is is_refused
    if refused is not None:
        assert refused.hangup_cause == Cause.CONGESTION
        assert refused.reason.startswith("quota service unreachable: ")


@pytest.mark.parametrize("secret", [None, SECRET])
def test_a_service_that_declines_refuses(scene: Scene, secret: str | None) -> None:
    scene.pay(BYOK)
    scene.credits.status = 403
    refused = facts.Refused(reason="the quota service declined: 403", hangup_cause=Cause.NOT_ALLOWED)
    assert scene.ask(secret=secret, when_unreachable="allow") == refused


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("UPDATE workflows SET user_id = NULL", "has no owner"),
        ("DELETE FROM workflow_runs", "there is no run"),
        ("UPDATE workflows SET organization_id = NULL", "there is no run"),
    ],
)
def test_without_an_owner_or_a_run_nothing_is_asked_and_the_call_is_refused(
    scene: Scene, change: str, reason: str
) -> None:
    scene.pay(managed(KEYS[0]))
    scene.rows.execute(change.encode())
    refused = scene.ask()
    assert refused is not None
    assert reason in refused.reason
    assert scene.lines == []


def test_a_managed_configuration_without_a_key_is_refused(scene: Scene) -> None:
    scene.pay({"version": 2, "mode": "dograh", "dograh": {}})
    refused = scene.ask()
    assert refused is not None
    assert "no api_key" in refused.reason
    assert scene.lines == []


def test_no_key_and_no_secret_shows(scene: Scene) -> None:
    scene.pay(managed(*KEYS))
    with structlog.testing.capture_logs() as logged:
        shown = []
        for status in (None, 500, 403):
            scene.credits.status = status
            shown += [scene.ask(secret=None), scene.ask(secret=SECRET)]
    assert "hunter2" not in repr((logged, shown, scene.budget.requests))


@pytest.mark.parametrize(
    ("contract", "setting", "is_about_runs"),
    [
        ("auto", "auto", True),
        ("auto", "2026-02", False),
        ("2026-02", "auto", False),
        ("oss", "2026-02", True),
        ("hosted", "2026-02", True),
    ],
)
def test_which_contract_is_asked_follows_the_tables_unless_it_is_set(
    scene: Scene, contract: Any, setting: Any, *, is_about_runs: bool
) -> None:
    accounts = dograh.Accounts(scene.db, watch=dograh.Watch(scene.db, setting, quiet=True))
    client = QuotaClient(scene.stand_in.url, connect_seconds=0.5, requests_at_once=1)
    service = QuotaService(accounts, client, LIMITS, secret=None, contract=contract)
    assert service.is_about_runs() is is_about_runs

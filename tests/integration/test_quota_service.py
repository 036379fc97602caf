"""The platform's quota service, on a real server that answers as a good, a bad or a hostile one would."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import UUID

import pytest
import structlog

from shared import errors
from shared.asterisk import rest
from shared.call import facts
from shared.call.calls import Call
from shared.call.limits import Limits
from shared.call.states import Cause, Direction, State
from shared.platform import dograh, ports
from shared.platform.dograh.quota_client import QuotaClient
from shared.platform.dograh.quota_service import QuotaService
from shared.storage import database

pytestmark = pytest.mark.services

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
SECRET = "hunter2-secret"
KEYS = ("mps-hunter2-llm", "mps-hunter2-stt", "mps-hunter2-tts")
#: As the product has it, but for the time it all takes.
LIMITS = Limits(quota_seconds=1.0, connect_seconds=0.5)
CALL = Call(
    call_id=UUID(int=1), connection_id=7, connection_version=1, organization_id=1, channel_id="1.1",
    channel_created="c", entry=1, direction=Direction.INBOUND, state=State.RECEIVED, received_at=NOW, state_since=NOW,
    deadline_at=NOW,
)  # fmt: skip

Answer = Callable[["_Handler"], None]


class Service:
    """A server on loopback; remembers what was asked. `answers` are by service key, `answer` is for the others."""

    def __init__(self) -> None:
        self.answer: Answer = credits_left(5)
        self.answers: dict[str, Answer] = {}
        self.asked: list[tuple[str, dict[str, str], Any]] = []
        self.stopping = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"service": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    @property
    def keys(self) -> list[str]:
        return sorted(body["service_key"] for _, _, body in self.asked)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    service: Service

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.service.asked.append((f"{self.command} {self.path}", dict(self.headers), body))
        self.service.answers.get(body["service_key"], self.service.answer)(self)

    do_GET = do_POST

    def say(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Nothing on the tests' output."""


def said(status: int, body: bytes | str = b"{}", **headers: str) -> Answer:
    return lambda handler: handler.say(status, body if isinstance(body, bytes) else body.encode(), **headers)


def credits_left(left: object) -> Answer:
    return said(200, json.dumps({"total_credits_used": 1.5, "remaining_credits": left}))


def silent(handler: _Handler) -> None:
    handler.service.stopping.wait(20)
    handler.close_connection = True


def cut(handler: _Handler) -> None:
    handler.close_connection = True


def dripping(handler: _Handler) -> None:
    """Each byte comes in time, all of them never do."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    while not handler.service.stopping.wait(0.2):
        try:
            handler.wfile.write(b" ")
        except OSError:
            return


def dripping_headers(handler: _Handler) -> None:
    """The same before the body begins, where no library looks at the clock."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while not handler.service.stopping.wait(0.2):
        try:
            handler.wfile.write(b"x")
        except OSError:
            return


class RequestBudget:
    """Lets requests through within `seconds`, and remembers them."""

    def __init__(self, seconds: float = 7.0) -> None:
        self.seconds = seconds
        self.requests: list[rest.RequestRecord] = []

    def seconds_left(self) -> float:
        return self.seconds

    def record_request(self, request: rest.RequestRecord) -> None:
        self.requests.append(request)


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.stopping.set()
    made.server.shutdown()
    thread.join()
    made.server.server_close()


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    made = database.Database(database_url, size=2)
    made.open()
    with made.connection() as connection:
        connection.execute("INSERT INTO users (id, provider_id) VALUES (2, 'user-ü')")
    yield made
    made.close()


@pytest.fixture
def make(db: database.Database, service: Service) -> Callable[..., QuotaService]:
    """The adapter, for a user with these keys for llm, stt and tts."""

    def made(*keys: str, secret: str | None = SECRET, limits: Limits = LIMITS, **options: Any) -> QuotaService:
        services = zip(("llm", "stt", "tts"), keys, strict=False)
        configuration = {name: {"provider": "dograh", "api_key": key} for name, key in services}
        with db.connection() as connection:
            connection.execute(
                "INSERT INTO user_configurations (user_id, configuration) VALUES (2, %s)", [json.dumps(configuration)]
            )
        client = QuotaClient(
            options.pop("url", service.url), connect_seconds=limits.connect_seconds, requests_at_once=6
        )
        return QuotaService(
            dograh.Accounts(db), client, limits, **{"secret": secret, "when_unreachable": "platform", **options}
        )

    return made


def ask(quota: QuotaService, budget: RequestBudget | None = None) -> facts.Refused | None:
    return quota.refusal(CALL, user_id=2, budget=budget or RequestBudget())


# ── the contract ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_user_without_the_platform_s_own_services_is_not_asked_for(
    service: Service, make: Callable[..., QuotaService]
) -> None:
    assert ask(make()) is None
    assert service.asked == []


@pytest.mark.parametrize("prefix", ["", "/", "/mps", "/mps/"])
def test_the_service_may_be_below_a_prefix(service: Service, make: Callable[..., QuotaService], prefix: str) -> None:
    assert ask(make(KEYS[0], url=service.url + prefix)) is None
    assert [line for line, _, _ in service.asked] == [f"POST {prefix.rstrip('/')}/api/v1/service-keys/usage"]


@pytest.mark.parametrize(
    ("secret", "header", "value"), [(SECRET, "X-Secret-Key", SECRET), (None, "X-Created-By", "user-ü")]
)
def test_the_request_is_the_platform_s(
    service: Service, make: Callable[..., QuotaService], secret: str | None, header: str, value: str
) -> None:
    budget = RequestBudget()
    assert ask(make(KEYS[0], secret=secret), budget) is None
    ((line, headers, body),) = service.asked
    assert line == "POST /api/v1/service-keys/usage"
    assert body == {"service_key": KEYS[0]}
    assert headers["Content-Type"] == "application/json"
    # http.server reads headers as latin-1.
    assert headers[header].encode("latin-1").decode() == value
    assert {"X-Secret-Key", "X-Created-By"} & set(headers) == {header}
    assert [(asked.what, asked.answer) for asked in budget.requests] == [("POST /api/v1/service-keys/usage", "200")]


def test_each_key_is_asked_for_once(service: Service, make: Callable[..., QuotaService]) -> None:
    assert ask(make(KEYS[0], KEYS[1], KEYS[0])) is None
    assert service.keys == sorted(KEYS[:2])


def test_keys_are_asked_for_at_the_same_time(service: Service, make: Callable[..., QuotaService]) -> None:
    together = threading.Barrier(3)

    def answer(handler: _Handler) -> None:
        # Broken, and a 500 then, unless all three requests are there at once.
        try:
            together.wait(0.8)
        except threading.BrokenBarrierError:
            return handler.say(500)
        return credits_left(5)(handler)

    service.answer = answer
    assert ask(make(*KEYS)) is None
    assert service.keys == sorted(KEYS)


# ── what an answer means ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("left", [0.10, 0.1000001, 1, 5.5, 10**9])
def test_credits_that_pay_for_a_call_let_it_through(
    service: Service, make: Callable[..., QuotaService], left: float
) -> None:
    service.answer = credits_left(left)
    assert ask(make(KEYS[0])) is None


@pytest.mark.parametrize("left", [0.0999, 0, -3, float("nan"), float("-inf")])
def test_credits_that_do_not_pay_refuse_it(service: Service, make: Callable[..., QuotaService], left: float) -> None:
    service.answer = credits_left(left)
    refused = facts.Refused(reason="the credits are used up", hangup_cause=Cause.NOT_ALLOWED)
    assert ask(make(KEYS[0], when_unreachable="allow")) == refused


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 422])
def test_a_service_that_declines_refuses_it(service: Service, make: Callable[..., QuotaService], status: int) -> None:
    service.answer = said(status, '{"detail": "hunter2"}')
    refused = facts.Refused(reason=f"the quota service declined: {status}", hangup_cause=Cause.NOT_ALLOWED)
    assert ask(make(KEYS[0], when_unreachable="allow")) == refused


UNUSABLE: list[Any] = [
    pytest.param(said(500), "answered 500", id="500"),
    pytest.param(said(503), "answered 503", id="503"),
    pytest.param(said(429), "answered 429", id="429"),
    pytest.param(said(408), "answered 408", id="408"),
    pytest.param(said(302, Location="/elsewhere"), "answered 302", id="redirect"),
    pytest.param(said(307, Location="/elsewhere"), "answered 307", id="redirect-that-keeps-the-body"),
    pytest.param(said(200, b""), "the answer is not JSON", id="empty"),
    pytest.param(said(200, "<html>"), "the answer is not JSON", id="html"),
    pytest.param(said(200, "[" * 50_000), "the answer is not JSON", id="deep"),
    pytest.param(said(200, "\xff"), "the answer is not JSON", id="not-text"),
    pytest.param(said(200, "[]"), "the answer has no remaining_credits", id="list"),
    pytest.param(said(200, "null"), "the answer has no remaining_credits", id="null"),
    pytest.param(said(200, "{}"), "the answer has no remaining_credits", id="lacking"),
    pytest.param(credits_left("5"), "the answer has no remaining_credits", id="text"),
    pytest.param(credits_left(True), "the answer has no remaining_credits", id="true"),
    pytest.param(credits_left(None), "the answer has no remaining_credits", id="none"),
    pytest.param(said(200, b" " * 65_537), "the answer is too large", id="huge"),
    pytest.param(cut, "request failed: ConnectionError", id="cut"),
    pytest.param(silent, "no answer in time", id="silent"),
    pytest.param(dripping, "no answer in time", id="dripping"),
    pytest.param(dripping_headers, "no answer in time", id="dripping-headers"),
]


@pytest.mark.parametrize("setting", ["platform", "refuse"])
@pytest.mark.parametrize(("answer", "reason"), UNUSABLE)
def test_no_usable_answer_refuses_or_lets_through_as_the_setting_says(
    service: Service, make: Callable[..., QuotaService], answer: Answer, reason: str, setting: str
) -> None:
    service.answer = answer
    started = time.monotonic()
    refused = ask(make(KEYS[0], when_unreachable=setting))
    # Bounded as a whole, with room for whatever else runs here.
    assert time.monotonic() - started < LIMITS.quota_seconds + 1.5
    assert refused == facts.Refused(reason=f"quota service unreachable: {reason}", hangup_cause=Cause.CONGESTION)
    assert [line for line, _, _ in service.asked] == ["POST /api/v1/service-keys/usage"], "asked again, or elsewhere"
    assert ask(make(KEYS[0], when_unreachable="allow")) is None


def test_a_service_that_is_not_there_is_unreachable(make: Callable[..., QuotaService]) -> None:
    budget = RequestBudget()
    refused = ask(make(KEYS[0], url="http://127.0.0.1:1"), budget)
    assert refused is not None
    assert refused.hangup_cause == Cause.CONGESTION
    assert refused.reason.startswith("quota service unreachable: request failed: ")
    assert [asked.answer for asked in budget.requests] == ["request failed: ConnectionError"]
    assert ask(make(KEYS[0], url="http://127.0.0.1:1", when_unreachable="allow")) is None


@pytest.mark.parametrize(
    ("others", "setting", "cause"),
    [
        pytest.param(5, "refuse", Cause.CONGESTION, id="one-unknown"),
        pytest.param(5, "allow", None, id="one-unknown-allowed"),
        pytest.param(0, "refuse", Cause.NOT_ALLOWED, id="one-unknown-others-used-up"),
        pytest.param(0, "allow", Cause.NOT_ALLOWED, id="one-unknown-allowed-others-used-up"),
    ],
)
def test_one_key_that_does_not_pay_is_enough(
    service: Service, make: Callable[..., QuotaService], others: int, setting: str, cause: Cause | None
) -> None:
    service.answer = credits_left(others)
    quota = make(*KEYS, when_unreachable=setting)
    for bad in KEYS:
        service.answers = {bad: said(500)}
        refused = ask(quota)
        assert (refused.hangup_cause if refused is not None else None) == cause
        service.answers = {bad: credits_left(0)}
        refused = ask(quota)
        assert refused is not None
        assert refused.hangup_cause == Cause.NOT_ALLOWED


def test_a_configuration_that_cannot_be_read_refuses_it(
    db: database.Database, service: Service, make: Callable[..., QuotaService]
) -> None:
    quota = make("")
    assert ask(quota) == facts.Refused(
        reason="the user's llm is a service of the platform and has no api_key", hangup_cause=Cause.NOT_ALLOWED
    )
    refused = quota.refusal(CALL, user_id=99, budget=RequestBudget())
    assert refused == facts.Refused(reason="there is no user 99", hangup_cause=Cause.NOT_ALLOWED)
    assert service.asked == []


# ── time and secrets ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("left", "asked"), [(0.3, 1), (0.0, 0), (-1.5, 0)])
def test_what_is_left_of_the_claim_bounds_it_and_storing_has_its_time(
    service: Service, make: Callable[..., QuotaService], left: float, asked: int
) -> None:
    service.answer = silent
    started = time.monotonic()
    refused = ask(make(*KEYS, limits=Limits()), RequestBudget(Limits().database_seconds + left))
    assert time.monotonic() - started < Limits().quota_seconds - 1
    assert refused is not None
    assert refused.hangup_cause == Cause.CONGESTION
    assert len(service.asked) == asked * len(KEYS)


def test_a_claim_that_has_run_out_asks_nothing(service: Service, make: Callable[..., QuotaService]) -> None:
    class Late(RequestBudget):
        def seconds_left(self) -> float:
            raise errors.OutOfTime("the step ran out of its time")

    with pytest.raises(errors.OutOfTime):
        ask(make(*KEYS), Late())
    assert service.asked == []


@pytest.mark.parametrize("answer", [said(500, KEYS[0]), said(403, KEYS[0]), said(200, KEYS[0]), silent])
def test_no_key_and_no_secret_shows(service: Service, make: Callable[..., QuotaService], answer: Answer) -> None:
    service.answer = answer
    budget = RequestBudget()
    quota = make(*KEYS)
    with structlog.testing.capture_logs() as logged:
        refused = ask(quota, budget)
    shown = repr((logged, refused, budget.requests, quota, ports.Account(provider_id="u", service_keys=KEYS)))
    assert "hunter2" not in shown
    assert len(budget.requests) == len(KEYS)

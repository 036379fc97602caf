"""The requests of the steps to an Asterisk: what `shared/asterisk` does, in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, cast

import greenlet

from shared import errors
from shared.asterisk import circuit_breaker, rest
from shared.asterisk.endpoint import Configuration
from simulator import errors as simulator_errors
from simulator import rest as simulator_rest
from simulator import (
    rest_applications,
    rest_bridges,
    rest_channels,
    switch,
)
from tests.simulation import faults
from tests.simulation.asterisks import Asterisk, has_stalled
from tests.simulation.faults import Fault
from tests.simulation.world import Fiber

_ROUTES = [*rest_applications.ROUTES, *rest_channels.ROUTES, *rest_bridges.ROUTES]
#: A request that timed out may take effect this much later.
_EFFECT_SECONDS = 6.0
_MISANSWERS = [(404, "Resource not found"), (503, "Busy"), (401, "Authentication required")]


class Requests:
    """One app's requests to one Asterisk: does what `rest.RestClient` does, in virtual time."""

    def __init__(
        self,
        asterisk: Asterisk,
        app: str,
        circuit: circuit_breaker.CircuitBreaker,
        *,
        connect_seconds: float,
        read_seconds: float,
    ) -> None:
        self._circuit = circuit
        self.configuration = Configuration(endpoint=f"http://{asterisk.name}", app=app, user=app, password="secret")
        self._asterisk = asterisk
        self._world = asterisk.world
        self._connect_seconds = connect_seconds
        self._seconds = connect_seconds + read_seconds

    def request_all(self, budget: rest.RequestBudget, requests: Sequence[rest.Request[Any]]) -> list[Any]:
        """Make several requests, each in a fiber of its own: it is sent, answered and hit by faults at its own moments.

        So events, and requests of others, come between those of one round.
        """
        results: list[Any] = [None] * len(requests)
        fiber = greenlet.getcurrent()
        assert isinstance(fiber, Fiber)
        missing = len(requests)
        is_waiting = False

        def ask(number: int) -> None:
            nonlocal missing
            try:
                results[number] = self._request(budget, requests[number])
            except errors.PipelineError as exc:
                results[number] = exc
            missing -= 1
            if not missing and is_waiting:
                self._world.resume(fiber)

        for number in range(1, len(requests)):
            other = self._world.start(
                fiber.process, fiber.what, lambda number=number: ask(number),  # type: ignore[misc]
                connection_id=fiber.connection_id, call_id=fiber.call_id,
            )  # fmt: skip
            other.seen, other.bridges_seen, other.has_stalled = fiber.seen, fiber.bridges_seen, fiber.has_stalled
        if requests:
            ask(0)
        if missing:
            is_waiting = True
            self._world.park()
        return results

    def _request(self, budget: rest.RequestBudget, request: rest.Request[Any]) -> Any:
        left = budget.seconds_left()
        self._asterisk.requested(budget)
        self._circuit.allow(budget)
        started = self._world.now
        answer, silence = "no answer", "no answer"
        try:
            status, document = self._world.port_call(
                request.what,
                lambda: self._sent(request, left),
                latency_seconds=0.002,
                own_faults=faults.OF_REQUESTS,
                inflict=lambda fault, effect: self._inflict(fault, effect, lambda: self._late(request), left),
            )
            message = rest.plain(document.get("message", "")) if isinstance(document, dict) else ""
            answer = f"{status} {message}".strip() if status >= 400 else str(status)
            silence = f"answered {answer}" if status >= 500 and message != rest.NOT_DIALLED else ""
            return rest._judge(status, message, document)
        except errors.AsteriskUnreachable as exc:
            answer = str(exc)
            silence = silence and answer
            raise
        finally:
            if silence:
                self._circuit.unanswered(budget, silence)
            else:
                self._circuit.answered()
            if self._world.keeps_story:
                self._world.tell(self._asterisk.name, "%s → %s", self._told(request), answer)
            budget.record_request(
                rest.RequestRecord(what=request.what, took_ms=(self._world.now - started) * 1000, answer=answer)
            )

    def must_probe(self, budget: rest.RequestBudget) -> bool:
        self._circuit.check(budget)
        return self._circuit.state is not circuit_breaker.State.CLOSED

    def _sent(self, request: rest.Request[Any], left: float) -> tuple[int, Any]:
        if self._asterisk.is_away:
            self._world.pause(min(left, self._connect_seconds))
            raise errors.AsteriskUnreachable("connecting took too long", may_have_acted=False)
        if not self._asterisk.is_running:
            raise errors.AsteriskUnreachable("connection refused", may_have_acted=False)
        asterisk, life = self._asterisk, self._asterisk.life
        fiber = greenlet.getcurrent()
        assert type(fiber) is Fiber
        try:
            work = self._handled(request)
            if request.method == "DELETE" and asterisk.media.is_connecting(request.path[1]):
                answer = self._waited_for(work, left)
            else:
                answer = _at_once(work)
        except simulator_errors.Refusal as refusal:
            return refusal.status, {"message": refusal.message}
        except simulator_errors.Cut:
            raise errors.AsteriskUnreachable("connection failed: ConnectionResetError") from None
        if asterisk.life != life:
            raise errors.AsteriskUnreachable("connection failed: ConnectionResetError")
        if request.method == "GET" and request.path[0] == "bridges" and len(request.path) > 1:
            fiber.bridges_seen[request.path[1]] = frozenset(answer.body["channels"])
        is_look = request.method == "GET" and request.path[0] == "channels"
        if is_look and answer.body["dialplan"]["app_name"] == "Stasis":
            fiber.seen.add(request.path[1])
        return answer.status, answer.body

    def _inflict(
        self, fault: Fault, effect: Callable[[], tuple[int, Any]], late: Callable[[], None], left: float
    ) -> tuple[int, Any]:
        choices = self._world.choices
        match fault:
            case Fault.REFUSED:
                raise errors.AsteriskUnreachable("connection refused", may_have_acted=False)
            case Fault.MISANSWERED:
                status, message = choices.one_of(_MISANSWERS)
                return status, {"message": message}
            case Fault.UNANSWERED:
                effect()
            # That of a step which stalled is not sent: nothing bounds how late it would be.
            case Fault.LATE if not has_stalled(greenlet.getcurrent()):
                self._world.after(choices.between(0.1, min(left, self._seconds) + _EFFECT_SECONDS), late)
        self._world.pause(min(left, self._seconds))
        raise errors.AsteriskUnreachable("no answer in time")

    def _late(self, request: rest.Request[Any]) -> None:
        """Take effect; the answer is lost."""
        if self._asterisk.is_running:
            self._world.tell(self._asterisk.name, "now takes effect: %s", self._told(request))
            work = self._handled(request)
            asyncio.get_running_loop().create_task(_unheard(work))

    def _handled(self, request: rest.Request[Any]) -> Coroutine[Any, Any, simulator_rest.Answer]:
        handler, names = _match(request.method, request.path)
        asked = simulator_rest.Request(method=request.method, query=request.query or {}, body=request.body, names=names)
        return cast(Coroutine[Any, Any, simulator_rest.Answer], handler(self._asterisk, asked))

    def _waited_for(self, work: Coroutine[Any, Any, simulator_rest.Answer], left: float) -> simulator_rest.Answer:
        task = asyncio.get_running_loop().create_task(work)
        if not self._world.wait(task, min(left, self._seconds)):
            raise errors.AsteriskUnreachable("no answer in time")
        return task.result()

    def _told(self, request: rest.Request[Any]) -> str:
        named, body = self._asterisk.named, request.body if isinstance(request.body, dict) else {}
        whom = (request.query or {}).get("channelId") or " ".join(map(named, body.get("channel", ())))
        return f"{request.method} /{'/'.join(map(named, request.path))} {named(whom)}".strip()


@functools.lru_cache(maxsize=10_000)
def _match(method: str, path: tuple[str, ...]) -> tuple[simulator_rest.Handler[switch.Switch], list[str]]:
    return simulator_rest.match(_ROUTES, method, list(path))


def _at_once(work: Coroutine[Any, Any, simulator_rest.Answer]) -> simulator_rest.Answer:
    """Return the answer of a handler that does not wait."""
    try:
        work.send(None)
    except StopIteration as done:
        return cast(simulator_rest.Answer, done.value)
    raise AssertionError("a handler waits")


async def _unheard(work: Coroutine[Any, Any, simulator_rest.Answer]) -> None:
    with contextlib.suppress(simulator_errors.Refusal, simulator_errors.Cut):
        await work

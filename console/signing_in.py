"""Signing in and out."""

from __future__ import annotations

import ipaddress
import logging
import time

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from console import pages, tokens
from console.lockout import Lockout
from console.pages import Console, Page, Visit
from shared import errors
from shared.operator import audit
from shared.operator.users import User, Users

_log = logging.getLogger(__name__)
#: Users behind one address share it: it is locked after so many times the failures of a name.
_ADDRESS_FACTOR = 4
_MOST_NAME = 64


class SignIn:
    """The sign-in page."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._users = Users(console.db)
        self._secret = console.config.secret_keys[0]
        attempts, seconds = console.config.console_sign_in_attempts, console.config.console_lock_seconds
        self._names = Lockout(attempts=attempts, seconds=seconds, clock=time.monotonic)
        self._addresses = Lockout(attempts=attempts * _ADDRESS_FACTOR, seconds=seconds, clock=time.monotonic)

    def route(self) -> Route:
        """Return its route."""
        return Route("/sign-in", self._endpoint, methods=["GET", "POST"])

    async def _endpoint(self, request: Request) -> Response:
        form = await pages.read_form(request) if request.method == "POST" else None
        return await run_in_threadpool(self._serve, request, form)

    def _serve(self, request: Request, form: dict[str, str] | None) -> Response:
        if form is None:
            return self._form(request, to=_local(request.query_params.get("next", "")))
        to = _local(form.get("next", ""))
        if not tokens.proves(form.get(tokens.FIELD, ""), tokens.visitor(request)) or tokens.is_cross_site(request):
            return self._form(request, to=to, status=403, wrong="This form was too old. Try again.")
        name, password = form.get("name", "").strip().lower()[:_MOST_NAME], form.get("password", "")
        try:
            return self._console.submissions.once("/sign-in", form, lambda: self._try(request, name, password, to))
        except errors.TransientError as exc:
            return self._form(request, to=to, name=name, status=503, wrong=f"Not now: {exc}.")

    def _try(self, request: Request, name: str, password: str, to: str) -> Response:
        address = request.client.host if request.client is not None else ""
        network = _network(address)
        # A browser where the user was before is counted apart: others who lock the name do not lock the user out.
        counted = f"{tokens.known(request, name, self._secret)}\0{name}"
        # The address first: one that is locked does not lock names.
        locked = self._addresses.begin(network) or self._names.begin(counted)
        if locked:
            wrong = f"Too many attempts. Try again in {max(1, round(locked / 60))} min."
            return self._form(request, to=to, name=name, status=429, wrong=wrong)
        try:
            user = self._users.with_password(name, password)
            token = self._begin(user, address) if user is not None else ""
            # A password that was typed into the wrong field is in no log.
            named = name if user is not None or self._users.is_there(name) else "unknown"
        except errors.PipelineError as exc:
            self._addresses.withdraw(network)
            self._names.withdraw(counted)
            wrong = f"Not now: {exc}. Try again in a moment."
            return self._form(request, to=to, name=name, status=503, wrong=wrong)
        if user is None:
            _log.warning("sign-in refused", extra={"user": named, "address": address})
            return self._form(request, to=to, name=name, status=401, wrong="Name and password do not fit.")
        self._addresses.withdraw(network)
        self._names.succeed(counted)
        _log.info("signed in", extra={"user": user.name, "address": address})
        answer = RedirectResponse(to, status_code=303)
        tokens.keep_session(request, answer, token, seconds=self._console.config.console_session_seconds)
        tokens.keep_known(request, answer, user.name, self._secret)
        return answer

    def _begin(self, user: User, address: str) -> str:
        """Begin a session, and return its token. It is in the audit; what is refused is in the log alone."""
        action = audit.Action(
            name="sign in", subject=f"user {user.name}", organization_id=user.organization_id,
            detail={"address": address},
        )  # fmt: skip
        actor = audit.Actor(who=user.name, via="console")
        with audit.recorded(self._console.db, actor, action) as recording:
            return self._console.sessions.through(recording).begin(user)

    def _form(self, request: Request, *, to: str, name: str = "", status: int = 200, wrong: str = "") -> Response:
        answer = HTMLResponse(status_code=status)
        visitor = tokens.keep_visitor(request, answer)
        answer.body = (
            self._console.templates.get_template("sign-in.html")
            .render(theme=pages.theme_of(request), csrf=tokens.proof(visitor), name=name, wrong=wrong, to=to)
            .encode()
        )
        answer.headers["content-length"] = str(len(answer.body))
        return answer


def _network(address: str) -> str:
    """Return what is locked for an address: of IPv6 its network of 64 bits, all of whose addresses one host may use."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    return str(parsed.ipv4_mapped or ipaddress.IPv6Address(int(parsed) >> 64 << 64))


def _local(path: str) -> str:
    """Return where to go after signing in: a path of this site, whatever the link said."""
    is_local = path.startswith("/") and not path.startswith("//") and "\\" not in path and path.isprintable()
    return path[:2_000] if is_local else "/"


def sign_out(visit: Visit) -> Response:
    """End the session."""
    visit.console.sessions.end(visit.token)
    answer = RedirectResponse("/sign-in", status_code=303)
    tokens.forget_session(visit.request, answer)
    return answer


def choose_theme(visit: Visit) -> Response:
    """Keep the chosen theme for a year, and go back."""
    answer = RedirectResponse(_local(visit.form.get("next", "")), status_code=303)
    theme = visit.form.get("theme", "")
    if theme in pages.THEMES:
        answer.set_cookie(
            pages.THEME_COOKIE,
            theme,
            max_age=31_536_000,
            httponly=True,
            samesite="lax",
            secure=visit.request.url.scheme == "https",
        )
    return answer


SIGN_OUT = Page(path="/sign-out", title="Sign out", act=sign_out, for_organizations=True, viewers_act=True)
THEME = Page(path="/theme", title="Theme", act=choose_theme, for_organizations=True, viewers_act=True)

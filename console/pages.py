"""A page: its address, what it is called, who may see it, and the function that answers.

Every page is served by `serve`: it looks up the session, refuses what the user may not see or do, and only then calls
the page's function. So a page cannot forget to ask. A page's function is an ordinary one: it runs in a thread.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from urllib.parse import parse_qsl, quote, unquote

import jinja2
from starlette.concurrency import run_in_threadpool
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from console import tokens
from console.refusal_bound import RefusalBound
from console.sampling import Sampled
from console.submissions import Submissions
from shared import errors
from shared.operator import audit
from shared.operator.audit import Action
from shared.operator.connection_list import Configurations
from shared.operator.connection_tests import ConnectionReport
from shared.operator.organization_usage import PlatformLimits
from shared.operator.users import Sessions, User
from shared.process import settings
from shared.storage import database

_log = logging.getLogger(__name__)

#: A form's body in bytes, and its fields.
_MOST_BYTES = 65_536
#: It has arrived within this time.
BODY_SECONDS = 10.0
_MOST_FIELDS = 500
#: A parameter of a query, in characters.
_MOST_PARAMETER = 500
#: A query that links carry on, in characters.
_MOST_QUERY = 2_000
_SAID_COOKIE = "said"
_MOST_SAID = 300
#: A tab may come with what is pasted.
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")
THEME_COOKIE = "theme"
THEMES = ("auto", "light", "dark")

Show: TypeAlias = "Callable[[Visit], Response]"


class _Id(Convertor[int]):
    """An id in a path. Starlette's `int` fails at one of 4301 digits, which Python does not read."""

    regex = "[0-9]{1,10}"

    def convert(self, value: str) -> int:
        return int(value)

    def to_string(self, value: int) -> str:
        return str(value)


register_url_convertor("id", _Id())


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page, or an action if it has only `act`."""

    #: With `{parameters}` as in Starlette's routes; a number that Postgres counts is `{name:id}`.
    path: str
    title: str
    #: Answers GET.
    show: Show | None = None
    #: Answers POST, once the form has proved to be one of ours: does something, and redirects. A form that is sent
    #: twice calls it once.
    act: Show | None = None
    #: Its name in the navigation; empty for a page that is reached from others.
    navigation: str = ""
    #: Whether users of one organization may see it. The page's queries then name `visit.organization_id`.
    for_organizations: bool = False
    #: Whether `act` needs no more than the role `view`.
    viewers_act: bool = False
    #: How the audit names what `act` does, and to what, with the parameters of the path: `hangup`, `call {call_id}`.
    #: Empty for what is not recorded.
    action: str = ""
    subject: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What pages ask of the platform's adapter."""

    #: Its limits, which count beside ours.
    limits: PlatformLimits
    configurations: Configurations
    #: Tests connections, as `arictl doctor` does, in some seconds. Raises DatabaseUnavailable.
    test: Callable[[Collection[int]], ConnectionReport]


@dataclass(frozen=True, slots=True, kw_only=True)
class Console:
    """What pages work with."""

    config: settings.Web
    db: database.Database
    sessions: Sessions
    templates: jinja2.Environment
    pages: tuple[Page, ...]
    #: Name → what pages are kept current about.
    topics: Mapping[str, Sampled]
    platform: Platform
    submissions: Submissions = field(default_factory=Submissions)
    refusals: RefusalBound = field(default_factory=RefusalBound)


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One request of a signed-in user for a page."""

    console: Console
    page: Page
    request: Request
    user: User
    #: The session's token.
    token: str
    #: The fields of a POST's form.
    form: Mapping[str, str] = field(default_factory=dict)

    @property
    def organization_id(self) -> int | None:
        """The one organization whose calls the user sees; None for all."""
        return self.user.organization_id

    @property
    def address(self) -> str:
        """The address that asks."""
        return self.request.client.host if self.request.client is not None else ""

    @property
    def is_fragment(self) -> bool:
        """Whether htmx asks for a part of the page."""
        return self.request.headers.get("hx-request") == "true"

    def parameter(self, name: str) -> str:
        """Return a parameter of the query, stripped and cut; empty if there is none. Raises InvalidRequest."""
        return _text(name, self.request.query_params.get(name, "").strip())[:_MOST_PARAMETER]

    def render(self, template: str, *, status: int = 200, age_ms: float = 0.0, **values: Any) -> Response:
        """Return a page made of a template.

        Args:
            age_ms: How old what it shows is already.
        """
        said = unquote(self.request.cookies.get(_SAID_COOKIE, ""))[:_MOST_SAID]
        layout = {
            "page": self.page,
            "user": self.user,
            "navigation": self.navigation,
            "theme": theme_of(self.request),
            "themes": THEMES,
            "csrf": tokens.proof(self.token),
            "path": self.request.url.path,
            "here": here(self.request),
            "age_ms": round(age_ms),
            "said": said,
            "stream": "/live",
        }
        answer = HTMLResponse(self.console.templates.get_template(template).render(layout | values), status_code=status)
        if said:
            answer.delete_cookie(_SAID_COOKIE)
        return answer

    def see(self, path: str, said: str = "") -> Response:
        """Return a redirect after an action, to a page that tells what was done."""
        answer = RedirectResponse(path, status_code=303)
        if said:
            answer.set_cookie(
                _SAID_COOKIE,
                quote(said[:_MOST_SAID]),
                max_age=60,
                httponly=True,
                samesite="lax",
                secure=self.request.url.scheme == "https",
            )
        return answer

    @property
    def navigation(self) -> list[Page]:
        """The pages that the user may go to."""
        return [page for page in self.console.pages if page.navigation and self.may_see(page)]

    def may_see(self, page: Page) -> bool:
        """Return whether the user may see a page."""
        return page.for_organizations or self.organization_id is None


def route(console: Console, page: Page) -> Route:
    """Return the route of a page."""
    methods = [method for method, answers in (("GET", page.show), ("POST", page.act)) if answers is not None]

    async def endpoint(request: Request) -> Response:
        form = await read_form(request) if request.method == "POST" else {}
        return await run_in_threadpool(serve, console, page, request, form)

    return Route(page.path, endpoint, methods=methods)


def serve(console: Console, page: Page, request: Request, form: dict[str, str]) -> Response:
    """Answer a request for a page, if the session lives and its user may ask for it."""
    token = tokens.session(request)
    try:
        user = console.sessions.user_of(token) if token else None
        if user is None:
            return to_sign_in(request)
        return _answered(Visit(console=console, page=page, request=request, user=user, token=token, form=form))
    except errors.PipelineError as exc:
        # Without Postgres it is not known who asks: no page of the layout is shown.
        return bare(console.templates, request, 503, f"Postgres does not answer: {exc}. Reload in a moment.")
    except Exception:  # noqa: BLE001 - one page's fault is that page's
        _log.exception("page failed", extra={"path": page.path})
        return bare(console.templates, request, 500, "This page failed. The error is in the log of the process web.")


def _answered(visit: Visit) -> Response:
    try:
        return _answer(visit)
    except HTTPException as exc:
        _record_refusal(visit, exc.detail)
        return problem(visit, exc.status_code, exc.detail)
    except errors.PermanentError as exc:
        return problem(visit, 400, str(exc))
    except errors.TransientError as exc:
        return problem(visit, 503, str(exc))


def _answer(visit: Visit) -> Response:
    page, user, request = visit.page, visit.user, visit.request
    if page.path == "/" and not visit.may_see(page) and visit.navigation:
        return RedirectResponse(visit.navigation[0].path, status_code=303)
    if not visit.may_see(page):
        raise HTTPException(403, f"{user.name} sees the calls of organization {user.organization_id} alone.")
    if request.method != "POST":
        assert page.show is not None
        return page.show(visit)
    if not _is_of_session(visit):
        raise HTTPException(403, "This form is not of your session: reload the page, and send it again.")
    if not (user.may_act or page.viewers_act):
        raise HTTPException(403, f"{user.name} has the role view, and may not do this.")
    for name, value in visit.form.items():
        _text(name, value)
    act = page.act
    assert act is not None
    return visit.console.submissions.once(request.url.path, visit.form, lambda: act(visit))


def _text(name: str, value: str) -> str:
    """Return a text that was given. Raises InvalidRequest if it has what no one types, and Postgres may not take."""
    found = _CONTROL.search(value)
    if found is not None:
        raise errors.InvalidRequest(f"{name[:50]} has a control character, U+{ord(found[0]):04X}: type it again")
    return value


def _is_of_session(visit: Visit) -> bool:
    """Return whether a form was sent by the user: another site may send one with the user's cookies."""
    proof = visit.form.get(tokens.FIELD, "")
    return tokens.proves(proof, visit.token) and not tokens.is_cross_site(visit.request)


def _record_refusal(visit: Visit, reason: str) -> None:
    """Record that a user may not act so, or not on this. What an action itself refuses, it records."""
    page, request = visit.page, visit.request
    if page.action and request.method == "POST" and _is_of_session(visit):
        action = Action(
            name=page.action, subject=page.subject.format(**request.path_params), organization_id=visit.organization_id
        )
        if not visit.console.refusals.takes(visit.user.name, action):
            return
        audit.refuse(visit.console.db, audit.Actor(who=visit.user.name, via="console"), action, reason)


def problem(visit: Visit, status: int, text: str) -> Response:
    """Return a page that says what is wrong."""
    return visit.render("problem.html", status=status, text=text, problem_title=_PROBLEMS.get(status, "Not possible"))


def bare(templates: jinja2.Environment, request: Request, status: int, text: str) -> Response:
    """Return a page that says what is wrong, where it is not known who asks."""
    values = {"theme": theme_of(request), "text": text, "problem_title": _PROBLEMS.get(status, "Not possible")}
    return HTMLResponse(templates.get_template("bare.html").render(values), status_code=status)


_PROBLEMS = {403: "Not allowed", 404: "Not found", 500: "Failed", 503: "Not now"}


async def read_form(request: Request) -> dict[str, str]:
    """Return the fields of a form, as the last of each name has it. Raises HTTPException where it is too large."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for piece in request.stream():
                body += piece
                if len(body) > _MOST_BYTES:
                    raise HTTPException(413, "the form is too large")
    except TimeoutError:
        raise HTTPException(408, "the form did not arrive in time") from None
    if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        raise HTTPException(415, "forms are sent as application/x-www-form-urlencoded")
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=_MOST_FIELDS))
    except ValueError:
        raise HTTPException(400, "this is no form") from None


def to_sign_in(request: Request) -> Response:
    """Return the way to the sign-in page, and from there back."""
    to = f"/sign-in?next={quote(here(request), safe='')}" if request.method == "GET" else "/sign-in"
    if request.headers.get("hx-request") == "true":
        # htmx would put the sign-in page into a part of this one.
        return Response(status_code=401, headers={"hx-redirect": to})
    return RedirectResponse(to, status_code=303)


def here(request: Request) -> str:
    """Return path and query of a request, without a query that is too long for a link.

    What a form was sent to answers no GET: the page above it does.
    """
    if request.method == "POST":
        return request.url.path.rpartition("/")[0] or "/"
    query = request.url.query
    return request.url.path + (f"?{query}" if 0 < len(query) <= _MOST_QUERY else "")


def theme_of(request: Request) -> str:
    """Return the theme that the user has chosen."""
    chosen = request.cookies.get(THEME_COOKIE, "")
    return chosen if chosen in THEMES else THEMES[0]

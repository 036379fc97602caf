"""The console's application: its pages, its streams and its files, behind the guard."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from console import (
    audit_page,
    call_page,
    calls_page,
    changes_page,
    connections_page,
    dead_letters_page,
    overview,
    pages,
    rendering,
    signing_in,
    steps_page,
    usage_page,
)
from console.assets import Assets
from console.guard import Front, Guard
from console.pages import Console, Page, Platform, route
from console.streams import Streams
from shared.operator.users import Sessions
from shared.process import settings
from shared.storage import database

#: Every page, in the order of the navigation.
PAGES: tuple[Page, ...] = (
    overview.PAGE,
    calls_page.PAGE,
    *call_page.PAGES,
    steps_page.PAGE,
    *connections_page.PAGES,
    *dead_letters_page.PAGES,
    usage_page.PAGE,
    changes_page.PAGE,
    audit_page.PAGE,
    signing_in.SIGN_OUT,
    signing_in.THEME,
)


class Application:
    """The console, as an ASGI application.

    Args:
        db: Open.
        platform: What pages ask of the platform's adapter.
    """

    def __init__(
        self,
        config: settings.Web,
        db: database.Database,
        served: tuple[Page, ...] = PAGES,
        *,
        platform: Platform,
    ) -> None:
        assets = Assets()
        sessions = Sessions(
            db, idle_seconds=config.console_idle_seconds, absolute_seconds=config.console_session_seconds
        )
        templates = rendering.environment(assets.url)
        topics = {overview.TOPIC: overview.sampled(config, db, templates)}
        self.console = Console(
            config=config, db=db, sessions=sessions, templates=templates, pages=served, topics=topics,
            platform=platform,
        )  # fmt: skip
        self.streams = Streams(sessions, topics, most=config.console_streams, most_of_user=config.console_user_streams)
        self._threads = config.database_pool
        self.asgi = Starlette(
            routes=[
                *(route(self.console, page) for page in served),
                signing_in.SignIn(self.console).route(),
                self.streams.route(),
                Route("/static/{version}/{name:path}", assets.respond),
            ],
            middleware=[
                Middleware(Guard, front=Front.of(config)),
                Middleware(GZipMiddleware, minimum_size=500, compresslevel=6),
            ],
            exception_handlers={HTTPException: self._refuse},
            lifespan=self._live,
        )

    @contextlib.asynccontextmanager
    async def _live(self, _app: Starlette) -> AsyncIterator[None]:
        # A page's function waits for Postgres: more threads than connections would wait for each other.
        anyio.to_thread.current_default_thread_limiter().total_tokens = self._threads
        ticking = asyncio.create_task(self.streams.run())
        try:
            yield
        finally:
            ticking.cancel()
            # What a thread is at work on is waited for: the database is closed next.
            await asyncio.gather(ticking, self.streams.settle(), return_exceptions=True)

    def _refuse(self, request: Request, exc: Exception) -> Response:
        assert isinstance(exc, HTTPException)
        refused = pages.bare(
            self.console.templates, request, exc.status_code, _REFUSALS.get(exc.status_code, exc.detail)
        )
        refused.headers.update(exc.headers or {})
        return refused


_REFUSALS = {404: "There is no such page.", 405: "This address takes another kind of request: go back, and look again."}

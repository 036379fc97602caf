"""The cookie of a session, the proof that a form is one of the session's own, and the mark of a known browser."""

from __future__ import annotations

import hashlib
import hmac
import secrets

from starlette.requests import Request
from starlette.responses import Response

#: The hidden field of every form.
FIELD = "csrf"
#: Characters of it that tell one page from another.
_PAGE_LENGTH = 16
_NAME = "ari-session"
#: Before there is a session: what the form of the sign-in page is proved by.
_VISITOR = "ari-visitor"
#: In a browser where a user has signed in before.
_KNOWN = "ari-known"
_KNOWN_SECONDS = 90 * 86_400.0


def session(request: Request) -> str:
    """Return the session's token; empty if there is none."""
    return request.cookies.get(_named(request, _NAME), "")


def visitor(request: Request) -> str:
    """Return the token of a visitor who has not signed in; empty if there is none."""
    return request.cookies.get(_named(request, _VISITOR), "")


def keep_session(request: Request, response: Response, token: str, *, seconds: float) -> None:
    """Have the browser keep the session's token; no script reads it, and no other site's request carries it."""
    _set(request, response, _NAME, token, seconds)


def keep_visitor(request: Request, response: Response) -> str:
    """Have the browser keep a token for the sign-in form, and return it."""
    token = visitor(request) or secrets.token_urlsafe(16)
    _set(request, response, _VISITOR, token, 3600)
    return token


def forget_session(request: Request, response: Response) -> None:
    """Have the browser forget the session's token."""
    response.delete_cookie(_named(request, _NAME), secure=_is_secure(request), httponly=True, samesite="lax")


def keep_known(request: Request, response: Response, name: str, secret: str) -> None:
    """Have the browser remember that this user has signed in there. It proves no more than that."""
    mark = secrets.token_urlsafe(16)
    _set(request, response, _KNOWN, f"{mark}.{_mark_proof(mark, name, secret)}", _KNOWN_SECONDS)


def known(request: Request, name: str, secret: str) -> str:
    """Return the mark of a browser where this user has signed in before; empty for any other."""
    mark, _, given = request.cookies.get(_named(request, _KNOWN), "").partition(".")
    return mark if hmac.compare_digest(given.encode(), _mark_proof(mark, name, secret).encode()) else ""


def _mark_proof(mark: str, name: str, secret: str) -> str:
    return hmac.new(secret.encode(), f"known browser/{mark}/{name}".encode(), hashlib.sha256).hexdigest()


def proof(token: str) -> str:
    """Return what the forms of one page have in their hidden field: another one for each page of a session.

    It follows from the session's token, which no page shows.
    """
    return _proof(secrets.token_hex(_PAGE_LENGTH // 2), token)


def proves(given: str, token: str) -> bool:
    """Return whether a form is one of the session's own."""
    return bool(token) and hmac.compare_digest(given.encode(), _proof(given[:_PAGE_LENGTH], token).encode())


def _proof(page: str, token: str) -> str:
    return page + hashlib.sha256(f"form/{page}/{token}".encode()).hexdigest()[_PAGE_LENGTH:]


def is_cross_site(request: Request) -> bool:
    """Return whether the browser says that another site has made the request."""
    return request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")


def _set(request: Request, response: Response, name: str, token: str, seconds: float) -> None:
    secure = _is_secure(request)
    response.set_cookie(
        _named(request, name), token, max_age=int(seconds), path="/", httponly=True, samesite="lax", secure=secure
    )


def _named(request: Request, name: str) -> str:
    # A browser keeps a cookie of this prefix only from this host over TLS: no neighbour of the domain can set it.
    return f"__Host-{name}" if _is_secure(request) else name


def _is_secure(request: Request) -> bool:
    """Over plain HTTP only loopback is served, where not every browser keeps secure cookies."""
    return request.url.scheme == "https"

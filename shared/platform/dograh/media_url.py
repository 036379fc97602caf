"""The media URL's query, and the token in it by which the voice agent knows that a media leg is ours."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from shared.call.calls import Call
from shared.platform.dograh import layouts, rules


class MediaUrl:
    """The query of the media URL, as the platform's endpoint reads it.

    Args:
        token_secret: Signs the token; None for no token.
        derived_secret: Signs it where there is no other secret, and the agent is not the newest platform's: that one
            looks at a token only by a secret of its own, and this would not be it.
        watch: Tells the layout; None for that of 2026-02.
    """

    def __init__(
        self, token_secret: str | None, *, derived_secret: str | None = None, watch: layouts.Watch | None = None
    ) -> None:
        self._token_secret = token_secret
        self._derived_secret = derived_secret
        self._watch = watch

    def parameters(self, call: Call) -> dict[str, str]:
        """Return the query parameters for a call that has its run."""
        layout = self._watch.found().layout if self._watch is not None else layouts.Layout.FEBRUARY_2026
        ids = rules.of(layout).media_ids(call)
        parameters = {name: str(value) for name, value in ids.items()}
        assert "None" not in parameters.values(), "the call has its run"
        secret = self._token_secret
        if secret is None and layout is layouts.Layout.FEBRUARY_2026:
            secret = self._derived_secret
        if secret is not None:
            parameters["token"] = token(secret, ids)
        return parameters


def token(secret: str, ids: Mapping[str, int | None]) -> str:
    """Return the parameter `token`: hex HMAC-SHA256 over the query's ids, as in `workflow:organization:run`."""
    text = ":".join(str(value) for value in ids.values())
    return hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()


def valid(candidate: str, secret: str, ids: Mapping[str, int | None]) -> bool:
    """Whether `candidate` is that token; compared in constant time."""
    return hmac.compare_digest(candidate.encode(), token(secret, ids).encode())

"""The media URL's query, and the token in it by which the voice agent knows that a media leg is ours."""

from __future__ import annotations

import hashlib
import hmac

from shared.call.calls import Call


class MediaUrl:
    """The query of the media URL, as the platform's endpoint reads it.

    Args:
        token_secret: Signs the token; None for no token.
    """

    def __init__(self, token_secret: str | None) -> None:
        self._token_secret = token_secret

    def parameters(self, call: Call) -> dict[str, str]:
        """Return the query parameters for a call that has its run."""
        assert call.workflow_id is not None
        assert call.user_id is not None
        assert call.workflow_run_id is not None
        ids = {"workflow_id": call.workflow_id, "user_id": call.user_id, "workflow_run_id": call.workflow_run_id}
        parameters = {name: str(value) for name, value in ids.items()}
        if self._token_secret is not None:
            parameters["token"] = token(self._token_secret, **ids)
        return parameters


def token(secret: str, *, workflow_id: int, user_id: int, workflow_run_id: int) -> str:
    """Return the parameter `token`: hex HMAC-SHA256 over `workflow_id:user_id:workflow_run_id`."""
    text = f"{workflow_id}:{user_id}:{workflow_run_id}"
    return hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()


def valid(candidate: str, secret: str, *, workflow_id: int, user_id: int, workflow_run_id: int) -> bool:
    """Whether `candidate` is that token; compared in constant time."""
    expected = token(secret, workflow_id=workflow_id, user_id=user_id, workflow_run_id=workflow_run_id)
    return hmac.compare_digest(candidate.encode(), expected.encode())

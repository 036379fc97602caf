"""The token by which the voice agent knows that a media leg is ours."""

from __future__ import annotations

import hashlib
import hmac


def token(secret: str, *, workflow_id: int, user_id: int, workflow_run_id: int) -> str:
    """Hex HMAC-SHA256 over `workflow_id:user_id:workflow_run_id`, the parameter `token` of the media URL."""
    text = f"{workflow_id}:{user_id}:{workflow_run_id}"
    return hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()


def valid(candidate: str, secret: str, *, workflow_id: int, user_id: int, workflow_run_id: int) -> bool:
    """Whether `candidate` is that token; compared in constant time."""
    expected = token(secret, workflow_id=workflow_id, user_id=user_id, workflow_run_id=workflow_run_id)
    return hmac.compare_digest(candidate.encode(), expected.encode())

"""The limit of open files: every socket is one, and the usual limit is 1024."""

from __future__ import annotations

import resource

import structlog

_log = structlog.stdlib.get_logger(__name__)


def raise_limit(needed: int) -> None:
    """Raise this process's limit to `needed`, as far as the system lets it; log a warning if that is not enough."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < needed:
        _log.warning("open file limit too low", limit=wanted, needed=needed)

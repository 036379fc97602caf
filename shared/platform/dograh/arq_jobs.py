"""A job in the queue of arq, which the platform's own processes take their jobs from: written without arq.

arq needs a client of Redis that is older than ours. The format is that of arq 0.26: a pickled dict under
`arq:job:{id}`, and its id in the zset `arq:queue` with the time in ms from which on it may run.
"""

from __future__ import annotations

# Only written: nothing is read by it.
import pickle

QUEUE = "arq:queue"
#: arq drops a job that has waited for a day.
EXPIRES_MS = 86_400_000
#: Which every Python since 3.4 reads.
_PROTOCOL = 4


def key(job_id: str) -> str:
    """Return the key of a job."""
    return f"arq:job:{job_id}"


def dumps(function: str, *args: object, now_ms: int) -> bytes:
    """Return a job for its key.

    Args:
        now_ms: Milliseconds since 1970.
    """
    return pickle.dumps({"t": None, "f": function, "a": args, "k": {}, "et": now_ms}, protocol=_PROTOCOL)


def url_of(redis_url: str) -> str:
    """Return the URL of arq's database on the platform's Redis: the first, whichever the platform's URL names."""
    base, _, query = redis_url.partition("?")
    scheme, _, rest = base.partition("://")
    if scheme != "unix":
        rest = f"{rest.partition('/')[0]}/0"
    kept = "&".join(each for each in query.split("&") if each and not each.startswith("db="))
    return f"{scheme}://{rest}" + (f"?{kept}" if kept else "")

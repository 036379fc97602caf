"""Which versions of Asterisk can serve a call, and which known faults of Asterisk a version has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from shared.operator.checks.findings import Finding, ok, warning, wrong

#: Branch, minor and patch number.
Numbers = tuple[int, int, int]

#: The first versions with websocket external media, one of each branch.
FIRST: tuple[Numbers, ...] = ((20, 18, 0), (22, 8, 0), (23, 2, 0))
_NEEDED = "20.18, 22.8, 23.2 or newer"

#: As Asterisk names itself: 22.10.1, 22.10.1+dfsg+~cs6.17 (Debian), 22.11.0-rc1, certified-22.8-cert1, GIT-22-abcdef.
_VERSION = re.compile(
    r"(?P<build>certified-|GIT-)?(\d+)(?:\.(\d+))?(?:\.(\d+))?(?:[-~](?P<candidate>(?:pre|alpha|beta|rc)\d+))?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Advisory:
    """A known fault of Asterisk.

    Attributes:
        fixed: The first versions without it, one of each branch, their release candidates included.
        only: If not empty, only these release candidates have it.
        todo: What to do; empty if the pipeline avoids the fault.
    """

    fault: str
    fixed: tuple[Numbers, ...]
    only: frozenset[tuple[Numbers, str]] = frozenset()
    todo: str = ""

    def applies(self, numbers: Numbers, candidate: str) -> bool:
        """Return whether this version has the fault."""
        if self.only:
            return (numbers, candidate) in self.only
        return not _reaches(numbers, self.fixed)

    def finding(self) -> Finding:
        """Return what the doctor says."""
        fixed = ", ".join(f"{major}.{minor}" + f".{patch}" * bool(patch) for major, minor, patch in self.fixed)
        seen = f"{self.fault} (fixed in {fixed})"
        return warning("known fault", seen, self.todo) if self.todo else ok("known fault", seen)


ADVISORIES = (
    Advisory(
        fault="an ARI user can run commands on the Asterisk's machine by dialplan functions, and a read-only user can"
        " write by REST over websocket (GHSA-vrfp-mg3q-3959, GHSA-wcvv-g26m-wx5c)",
        fixed=((20, 20, 1), (22, 10, 1), (23, 4, 1)),
        todo="upgrade Asterisk; until then let only the pipeline's machines reach ARI (a firewall), and trust each ARI"
        " user with the whole machine",
    ),
    Advisory(
        fault="an agent that accepts a connection and never answers the websocket upgrade holds up every new call",
        fixed=((20, 21, 0), (22, 11, 0), (23, 5, 0)),
        todo="upgrade Asterisk when you can; until then see that the agent, or the proxy in front of it, answers or"
        " closes each connection within seconds",
    ),
    Advisory(
        fault="a second externalMedia request with one id crashes Asterisk; the pipeline never repeats one",
        fixed=((20, 21, 0), (22, 11, 0), (23, 5, 0)),
    ),
    Advisory(
        fault="an unsolicited PONG of an ARI client kills this release candidate; the pipeline sends none",
        fixed=((22, 11, 0), (23, 5, 0)),
        only=frozenset({((22, 11, 0), "rc1"), ((23, 5, 0), "rc1")}),
        todo="upgrade to the release: another ARI client may send one (asterisk#2085)",
    ),
    Advisory(
        fault="silence that has to be transcoded becomes loud noise",
        fixed=((20, 19, 0), (22, 9, 0), (23, 3, 0)),
        todo="upgrade Asterisk, or let the callers' channels use ulaw, which the agent gets",
    ),
)


def judge_version(version: str) -> Iterator[Finding]:
    """Check whether an Asterisk of this version can serve calls, and name its known faults."""
    match = _VERSION.match(version)
    if match is None:
        yield warning("version", f"{version or 'none'}: not recognised", f"{_NEEDED} is needed")
        return
    numbers, candidate = (int(match[2]), int(match[3] or 0), int(match[4] or 0)), match["candidate"] or ""
    if match[3] is None:
        todo = f"check that it is {_NEEDED}; its known faults were not looked up"
        yield warning("version", f"{version}: a build of branch {numbers[0]}", todo)
    elif not _reaches(numbers, FIRST):
        yield wrong("version", version, f"upgrade to {_NEEDED}, for external media over websocket")
    elif match["build"]:
        todo = "read its release notes: a certified release has fixes of its own"
        yield warning("version", f"{version}: its known faults were not looked up", todo)
    else:
        yield ok("version", version)
        yield from (advisory.finding() for advisory in ADVISORIES if advisory.applies(numbers, candidate))


def _reaches(numbers: Numbers, first: tuple[Numbers, ...]) -> bool:
    """Return whether a version is, or follows, the first of its branch; a branch above all of them does."""
    of_branch = [one for one in first if one[0] == numbers[0]]
    return numbers >= of_branch[0] if of_branch else numbers[0] > max(one[0] for one in first)

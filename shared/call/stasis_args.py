"""The arguments a leg brings into Stasis: the run, or the transfer, that the platform has originated it for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from shared import errors

_RUN, _WORKFLOW, _USER = "workflow_run_id", "workflow_id", "user_id"
_TRANSFER = "transfer"
_LEG = "leg_id"
_LARGEST_ID = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RunArgs:
    """The run a leg is for, as the PBX says: to be checked, never trusted."""

    workflow_run_id: int
    workflow_id: int
    user_id: int | None = None

    def __str__(self) -> str:
        user = f",{_USER}={self.user_id}" if self.user_id is not None else ""
        return f"{_RUN}={self.workflow_run_id},{_WORKFLOW}={self.workflow_id}{user}"


def names_run(args: Iterable[str]) -> bool:
    """True if any argument has a known key: then the leg is no inbound call, even if the arguments are unusable."""
    return any(key in (_RUN, _WORKFLOW, _USER) for key, _ in _pairs(args))


def of_leg(args: RunArgs, leg_id: str) -> str:
    """Return the arguments of a leg that the product dials; a channel that picks it up brings them (measured)."""
    return f"{args},{_LEG}={leg_id}"


def dialled_leg(args: Iterable[str]) -> str | None:
    """Return the leg that the product has dialled with these arguments; None if they name none."""
    return next((value for key, value in _pairs(args) if key == _LEG), None)


def is_transfer(args: Iterable[str]) -> bool:
    """True for `transfer,ID`, in one string or several: the platform transfers one of its callers to this leg."""
    first, comma, transfer = ",".join(args).partition(",")
    return first.strip() == _TRANSFER and bool(comma) and bool(transfer.strip())


def transfer_id(args: Iterable[str]) -> str:
    """Return the ID of `transfer,ID[,…]`; an empty text for other arguments."""
    first, _, rest = ",".join(args).partition(",")
    return rest.partition(",")[0].strip() if first.strip() == _TRANSFER else ""


def read(args: Iterable[str]) -> RunArgs:
    """Read `workflow_run_id=R,workflow_id=W[,user_id=U]`, in one string or several. Other keys are the dialplan's own.

    Raises:
        InvalidStasisArgs: Says which argument and why.
    """
    found: dict[str, str] = {}
    for key, value in _pairs(args):
        if key in (_RUN, _WORKFLOW, _USER) and found.setdefault(key, value) != value:
            raise errors.InvalidStasisArgs(f"{key} is given twice")
    for key in (_RUN, _WORKFLOW):
        if key not in found:
            raise errors.InvalidStasisArgs(f"{key} is missing")
    return RunArgs(
        workflow_run_id=_id(found, _RUN),
        workflow_id=_id(found, _WORKFLOW),
        user_id=_id(found, _USER) if _USER in found else None,
    )


def _pairs(args: Iterable[str]) -> Iterable[tuple[str, str]]:
    for arg in args:
        for part in arg.split(","):
            key, is_pair, value = part.partition("=")
            if is_pair:
                yield key.strip(), value.strip()


def _id(found: dict[str, str], key: str) -> int:
    text = found[key]
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and 0 < int(text) <= _LARGEST_ID):
        raise errors.InvalidStasisArgs(f"{key} is not the number of one")
    return int(text)

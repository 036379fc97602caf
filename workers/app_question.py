"""Who has a connection's Stasis app? Asked once before its first event socket is opened: one GET.

An app exists in Asterisk while it has an event socket or a channel. One that exists, and was never ours, another
process has: a socket of ours would replace the one it has, and its calls would be lost. If there is no usable answer,
the socket is opened, and says itself what is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import structlog

from shared import errors
from shared.asterisk import ari, events
from shared.call.ids import ConnectionVersion
from shared.storage.app_holders import Holder
from shared.storage.call_writer import CallWriter
from shared.storage.timeline import TimelineEntry
from workers.asterisks import Asterisks
from workers.claims import TimedBudget

log = structlog.stdlib.get_logger(__name__)

_OURS = frozenset(map(str, events.EventType))


class AppHolders(Protocol):
    """Who has which app. `app_holders.AppHolders` is the adapter."""

    def note(self, connection: ConnectionVersion, holder: Holder) -> str:
        """Write who has an app; return what has changed, or an empty text."""

    def has_lately_displaced(self, connection: ConnectionVersion, *, seconds: float) -> bool:
        """True for so long after the first socket of ours was opened in the place of another process's."""


@dataclass(frozen=True, kw_only=True)
class AppQuestion:
    """Answers the question."""

    writer: CallWriter
    asterisks: Asterisks
    app_holders: AppHolders

    def answer(self, *, connection: ConnectionVersion) -> None:
        """Ask the Asterisk, and write what follows."""
        changed = self.app_holders.note(connection, self._holder(connection))
        if changed:
            log.warning("app holder", connection=str(connection), change=changed)
            entry = TimelineEntry(kind="note", name="AppHolder", detail=f"{connection.number}: {changed}")
            self.writer.store.append_timeline([entry], connection_id=connection.connection_id)

    def _holder(self, connection: ConnectionVersion) -> Holder:
        budget = TimedBudget(self.writer, self.writer.limits.request_seconds)
        try:
            application = self.asterisks.at(connection, budget).application()
        except (*errors.NO_ANSWER, errors.SealBroken) as exc:
            log.info("app holder unknown", connection=str(connection), reason=str(exc))
            return Holder.UNKNOWN
        return Holder.NONE if application is None or _bears_our_mark(application) else Holder.SOME


def _bears_our_mark(application: ari.Application) -> bool:
    """True for an app with the event filter that our resyncs set: it is ours, though a restored database forgot it.

    The filter stays as long as the app does. An earlier release may have asked for fewer events.
    """
    return bool(application.allowed) and application.allowed <= _OURS

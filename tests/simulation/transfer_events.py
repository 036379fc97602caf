"""What the platform's API hears of transfers, in memory."""

from __future__ import annotations

from collections.abc import Callable

from shared.platform.ports import Transfer
from tests.simulation.platform_redis import PlatformRedis


class TransferEvents:
    """What the platform's API hears of the destinations that it originates. Its Redis may be away."""

    def __init__(self, server: PlatformRedis) -> None:
        self._server = server
        #: By id: those that the API has written down.
        self._transfers: dict[str, Transfer] = {}
        #: Destination → the id of its transfer, once Asterisk has answered the API.
        self._noted: dict[str, str] = {}
        #: Those for whose news the API waits, and what it does when a destination has answered.
        self._awaited: dict[str, Callable[[], None]] = {}

    # ── the API ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def begin(self, transfer_id: str, caller_id: str) -> None:
        """Write a transfer down, before its destination is dialled."""
        self._transfers[transfer_id] = Transfer(
            transfer_id=transfer_id, caller_id=caller_id, workflow_run_id=None, conference_name=None
        )

    def listen(self, transfer_id: str, channel_id: str, answered: Callable[[], None]) -> None:
        """Note the destination, and wait for news of it."""
        self._noted[channel_id] = transfer_id
        self._awaited[transfer_id] = answered

    def end(self, transfer_id: str) -> None:
        """Wait no longer, and remove what was written down."""
        self._transfers.pop(transfer_id, None)
        self._awaited.pop(transfer_id, None)

    # ── the port ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def is_served(self) -> bool:
        return True

    def refusal(self) -> str | None:
        return None

    def transfer(self, transfer_id: str) -> Transfer | None:
        return self._server.ask("read a transfer", lambda: self._transfers.get(transfer_id))

    def transfer_to(self, channel_id: str) -> Transfer | None:
        return self._server.ask("read a leg's transfer", lambda: self._transfers.get(self._noted.get(channel_id, "")))

    def answered(self, transfer: Transfer, channel_id: str) -> bool:
        def tell() -> bool:
            self._noted[channel_id] = transfer.transfer_id
            act = self._awaited.pop(transfer.transfer_id, None)
            if act is not None:
                act()
            return act is not None

        return self._server.ask("tell of an answer", tell)

    def failed(self, transfer: Transfer, channel_id: str, reason: str) -> bool:
        return self._server.ask("tell of a failure", lambda: self._awaited.pop(transfer.transfer_id, None) is not None)

    def forget(self, channel_id: str) -> None:
        self._server.ask("forget a leg", lambda: self._noted.pop(channel_id, None))

"""The requests that the platform's API makes to an organization's Asterisk."""

from __future__ import annotations

import base64
from typing import Any
from urllib.parse import quote

import aiohttp

from devstack.platform_api.runs import Configuration

_TIMEOUT = aiohttp.ClientTimeout(total=10)


class NotDone(Exception):
    """Asterisk has refused a request, or did not answer."""


class AsteriskClient:
    """ARI by REST, with the configuration's user."""

    def __init__(self, session: aiohttp.ClientSession, configuration: Configuration) -> None:
        self._session = session
        self._url = f"{configuration.endpoint}/ari"
        credentials = f"{configuration.user}:{configuration.password}".encode()
        self._headers = {"Authorization": f"Basic {base64.b64encode(credentials).decode()}"}

    async def originate(self, **query: str) -> dict[str, Any]:
        """Begin a call; return its channel. Raises NotDone."""
        return await self._request("POST", "/channels", query)

    async def hang_up(self, channel_id: str) -> None:
        """Hang up a channel; one that is gone already is no error. Raises NotDone."""
        await self._request("DELETE", f"/channels/{quote(channel_id, safe='')}", {}, may_be_gone=True)

    async def add(self, bridge_id: str, channel_id: str) -> None:
        """Put a channel into a bridge. Raises NotDone."""
        await self._request("POST", f"/bridges/{quote(bridge_id, safe='')}/addChannel", {"channel": channel_id})

    async def remove(self, bridge_id: str, channel_id: str) -> None:
        """Take a channel out of a bridge. Raises NotDone."""
        await self._request("POST", f"/bridges/{quote(bridge_id, safe='')}/removeChannel", {"channel": channel_id})

    async def _request(
        self, method: str, path: str, query: dict[str, str], *, may_be_gone: bool = False
    ) -> dict[str, Any]:
        try:
            async with self._session.request(
                method, self._url + path, params=query, headers=self._headers, timeout=_TIMEOUT
            ) as answer:
                if answer.status >= 400 and not (may_be_gone and answer.status == 404):
                    raise NotDone(f"{method} {path}: {answer.status}")
                return await answer.json() if answer.status == 200 else {}
        except (aiohttp.ClientError, TimeoutError) as exc:
            raise NotDone(f"{method} {path}: {type(exc).__name__}") from exc

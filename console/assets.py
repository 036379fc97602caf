"""The files that pages load: read once, compressed once, and named by their content, so that browsers keep them."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

FOLDER = Path(__file__).parent / "static"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_FOREVER = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """A file in memory."""

    content: bytes
    compressed: bytes
    media_type: str
    #: The beginning of the content's SHA-256.
    version: str


class Assets:
    """All files of `console/static/`, by their path in it."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._assets = {
            path.relative_to(folder).as_posix(): _read(path)
            for path in sorted(folder.rglob("*"))
            if path.suffix in _TYPES
        }

    def url(self, name: str) -> str:
        """Return the URL of a file, for templates. Raises KeyError if there is none."""
        return f"/static/{self._assets[name].version}/{name}"

    def respond(self, request: Request) -> Response:
        """Answer a request for a file: a look-up, no path of the request reaches the file system."""
        asset = self._assets.get(request.path_params["name"])
        if asset is None or asset.version != request.path_params["version"]:
            return PlainTextResponse("no such file", status_code=404)
        headers = {"cache-control": _FOREVER, "vary": "accept-encoding"}
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["content-encoding"] = "gzip"
            return Response(asset.compressed, media_type=asset.media_type, headers=headers)
        return Response(asset.content, media_type=asset.media_type, headers=headers)


def _read(path: Path) -> Asset:
    content = path.read_bytes()
    return Asset(
        content=content,
        compressed=gzip.compress(content, 9, mtime=0),
        media_type=_TYPES[path.suffix],
        version=hashlib.sha256(content).hexdigest()[:16],
    )

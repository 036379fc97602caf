"""An Asterisk that answers what it is told to, for the checks of `arictl doctor`."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from shared.operator.checks import asterisk_checks

PASSWORD = "hunter2 & # % + : ; ="
Answers = dict[str, tuple[int, object]]

HEALTHY: Answers = {
    "GET /applications/voiceai": (200, {"name": "voiceai", "channel_ids": [], "bridge_ids": []}),
    "GET /asterisk/info": (200, {"system": {"version": "22.11.0"}}),
    "GET /asterisk/modules": (
        200,
        [{"name": f"{name}.so", "status": "Running"} for name in asterisk_checks.MODULES],
    ),
    "POST /channels/*/answer": (404, {"message": "Channel not found"}),
    "DELETE /channels/*": (404, {"message": "Channel not found"}),
}


def client(uri: str, **more: str) -> tuple[int, object]:
    attributes = {"uri": uri, "protocols": "media", "connection_type": "per_call_config", "password": PASSWORD} | more
    return 200, [{"attribute": name, "value": value} for name, value in attributes.items()]


class Canned:
    """An Asterisk that answers what it is told to; what it is not told is a 404."""

    def __init__(self) -> None:
        self.answers = dict(HEALTHY)
        self.pause_seconds = 0.0
        #: What a proxy in front of it makes of a path.
        self.rewrite: Callable[[str], str] = lambda path: path
        canned = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                path = canned.rewrite(self.path.removeprefix("/ari"))
                name = path.removeprefix(CLIENTS_PATH)
                path = re.sub(r"/channels/doctor-\w+", "/channels/*", path)
                is_client = path.startswith(CLIENTS_PATH) and "/" not in name
                unknown = f"Object with id '{unquote(name)}' not found" if is_client else "Resource not found"
                status, document = canned.answers.get(f"{self.command} {path}", (404, {"message": unknown}))
                time.sleep(canned.pause_seconds)
                body = json.dumps(document).encode()
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            do_GET = do_POST = do_DELETE = answer

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.answers["GET " + CLIENT_PATH] = client(f"ws://u:hunter2@127.0.0.1:{self._server.server_port}/?t=hunter2")

    def __enter__(self) -> Canned:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


CLIENTS_PATH = "/asterisk/config/dynamic/res_websocket_client/websocket_client/"
CLIENT_PATH = CLIENTS_PATH + "media"

"""The configuration files that an Asterisk needs, as text: the one home of the dialplan we recommend.

They never contain a password: PASSWORD stands where one belongs. What only newer versions know is commented out, as an
older one refuses the whole section.
"""

from __future__ import annotations

import urllib.parse

PASSWORD = "PASSWORD-OF-THIS-USER"  # noqa: S105 - a placeholder
PIPELINE = "ADDRESSES-OF-THE-PIPELINE"
MEDIA_URL = "wss://VOICE-AGENT-HOST/api/v1/telephony/ws/ari"

_DIALPLAN = """[{context}]
exten => _[+0-9].,1,Ringing()
 same => n,Set(TRIES=0)
 same => n(enter),Stasis({app})
 same => n,GotoIf($["${{STASISSTATUS}}" != "FAILED" | ${{TRIES}} >= 50]?done)
 same => n,Set(TRIES=$[${{TRIES}} + 1])
 same => n,Wait(0.1)
 same => n,Goto(enter)
 same => n(done),Hangup()
"""

_WEBSOCKET_CLIENT = """[{name}]
type=websocket_client
; Where the voice agent is: wss://, or ws:// within a private network.
uri={uri}
protocols=media
connection_type=per_call_config
; Milliseconds, for the TCP connection alone.
connection_timeout=1000
; One: while Asterisk tries, other calls wait. The pipeline tries again.
reconnect_attempts=1
; Asterisk 20.21, 22.11, 23.5 or newer: a media socket whose agent is gone without a word is closed.
;enable_pingpongs=yes
"""

_USER = """[general]
enabled=yes
[{user}]
type=user
read_only=no
; Put the password here that `arictl connection add` was given, or that the platform has. Any characters, but
; - a semicolon is written as \\; because a bare one begins a comment: `a;b` is `password=a\\;b`;
; - blanks at its beginning or end cannot be written at all: choose another password.
password={password}
; Asterisk 20.19, 22.9, 23.3 or newer: this user may be used from these addresses only.
;deny=0.0.0.0/0
;permit={pipeline}
"""

_HTTP = """[general]
enabled=yes
{listen}{prefix}; TCP sessions, event sockets included. Above it Asterisk closes connections silently.
sessionlimit=100
; Asterisk 20.19, 22.9, 23.3 or newer: ARI answers these addresses only, whatever the user.
;[{path}]
;type=restriction
;deny=0.0.0.0/0
;permit={pipeline}
"""

_PLAIN = "bindaddr=0.0.0.0\nbindport={port}\n"
_TLS = """; The endpoint is https. Either a TLS proxy in front passes it on to bindport, or Asterisk speaks TLS itself:
bindaddr=127.0.0.1
bindport=8088
tlsenable=yes
tlsbindaddr=0.0.0.0:{port}
tlscertfile=/etc/asterisk/keys/fullchain.pem
tlsprivatekey=/etc/asterisk/keys/privkey.pem
"""


def dialplan(app: str, *, context: str = "inbound") -> str:
    """Return extensions.conf: a caller rings and is tried again for five seconds while the app has no event socket."""
    return _DIALPLAN.format(context=context, app=app)


def files(*, endpoint: str, app: str, user: str, websocket_client: str) -> dict[str, str]:
    """Return file name → text, for a connection.

    Args:
        endpoint: canonical, `http(s)://host[:port][/prefix]`.
    """
    parts = urllib.parse.urlsplit(endpoint)
    secure = parts.scheme == "https"
    listen = (_TLS if secure else _PLAIN).format(port=parts.port or (443 if secure else 80))
    path = parts.path.rstrip("/")
    prefix = f"prefix={path.strip('/')}\n" if path else ""
    return {
        "http.conf": _HTTP.format(listen=listen, prefix=prefix, path=f"{path}/ari", pipeline=PIPELINE),
        "ari.conf": _USER.format(user=user, password=PASSWORD, pipeline=PIPELINE),
        "websocket_client.conf": _WEBSOCKET_CLIENT.format(name=websocket_client, uri=MEDIA_URL),
        "extensions.conf": dialplan(app),
    }

"""The settings of one simulated Asterisk; defaults are those of a real Asterisk, where it has any."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one simulated Asterisk. Frequencies are multiples of 50 Hz, so that one frame can repeat."""

    #: ARI users and their passwords (ari.conf).
    users: Mapping[str, str] = field(default_factory=lambda: {"demo": "demo"})
    #: Those of them that may only read (ari.conf: read_only).
    read_only_users: Collection[str] = ()
    #: Name of a websocket client → the URL it connects to (websocket_client.conf).
    media_urls: Mapping[str, str] = field(default_factory=dict)
    #: Path before `/ari`, "" or "/asterisk" (http.conf: prefix).
    path_prefix: str = ""
    #: TCP connections to `/ari` at a time, websockets included; further ones are closed (http.conf: sessionlimit).
    session_limit: int = 100
    #: Seconds an idle HTTP connection is kept (http.conf: session_keep_alive).
    keep_alive_seconds: float = 15.0
    #: A client that reads events more slowly is cut off (ari.conf: websocket_write_timeout).
    event_write_timeout_seconds: float = 0.1
    #: Identity in each event; a real one is a MAC address, so it may change or repeat.
    asterisk_id: str = "02:42:ac:11:00:02"
    version: str = "22.10.1"
    #: The modules a call needs that are running (modules.conf).
    modules: Collection[str] = (
        "app_stasis",
        "bridge_simple",
        "chan_websocket",
        "res_ari_applications",
        "res_ari_asterisk",
        "res_ari_bridges",
        "res_ari_channels",
        "res_ari_events",
        "res_http_websocket",
        "res_websocket_client",
    )

    #: Longest duration of one attempt to reach the media server, and the pause after a failed one
    #: (websocket_client.conf).
    media_connection_timeout_seconds: float = 1.0
    #: Attempts before the media leg is destroyed.
    media_connection_attempts: int = 1

    #: Stasis app of the dialplan context `inbound`, for originates over `Local/NUMBER@inbound`.
    inbound_app: str = "voiceai"
    #: Further contexts → the arguments of their Stasis(), as `app,arg1,arg2`; `${EXTEN}` in it is the called number.
    #: Each also has a plain form, CONTEXT-plain, that hangs up at once when the app has no socket.
    contexts: Mapping[str, str] = field(default_factory=dict)
    #: Contexts whose calls are offered to several apps → the arguments of their StasisBroadcast(), as
    #: `milliseconds,regex`; `${EXTEN}` in it is the called number.
    broadcasts: Mapping[str, str] = field(default_factory=dict)
    #: True: the app gets the ChannelDestroyed of a caller's leg, although that was unsubscribed as it left Stasis.
    caller_channel_destroyed: bool = False
    #: Time until the far end of an originate answers.
    answer_after_seconds: float = 0.02

    #: False: no audio at all (media legs stay silent), for load tests.
    audio: bool = True
    #: The tone that a caller says, unless dialled with another one.
    caller_tone_hz: int = 700
    #: The tone that the agent hears before its leg is in a bridge; None: silence.
    idle_tone_hz: int | None = 400

    #: A crashed Asterisk comes back after this time; None: only by a restart request.
    restart_after_seconds: float | None = None
    #: Entries kept in the request log and in the event log.
    log_entries: int = 50_000

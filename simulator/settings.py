"""What one simulated Asterisk is configured with; the defaults are those of a real Asterisk where it has any."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The configuration of one simulated Asterisk. Frequencies are multiples of 50 Hz, so that one frame can repeat."""

    #: ARI users and their passwords (ari.conf).
    users: Mapping[str, str] = field(default_factory=lambda: {"demo": "demo"})
    #: What the websocket clients are named and where they connect to (websocket_client.conf).
    media_urls: Mapping[str, str] = field(default_factory=dict)
    #: Path in front of `/ari`, "" or "/asterisk" (http.conf: prefix).
    path_prefix: str = ""
    #: TCP connections to `/ari` at a time, websockets included; more are just closed (http.conf: sessionlimit).
    session_limit: int = 100
    #: Seconds an idle HTTP connection is kept (http.conf: session_keep_alive).
    keep_alive_seconds: float = 15.0
    #: A reader of events that takes longer than this is cut off (ari.conf: websocket_write_timeout).
    event_write_timeout_seconds: float = 0.1
    #: Identity in each event; a MAC address in reality, so it may change or repeat.
    asterisk_id: str = "02:42:ac:11:00:02"
    version: str = "22.10.1"
    #: Those that run, of the modules a call needs (modules.conf).
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

    #: One attempt to reach the media server, refused or not, lasts this long (websocket_client.conf).
    media_connection_timeout_seconds: float = 0.5
    #: Attempts before the media leg is destroyed.
    media_connection_attempts: int = 4

    #: Stasis app of the dialplan context `inbound`, for originates over `Local/NUMBER@inbound`.
    inbound_app: str = "voiceai"
    #: Further contexts → what stands in their Stasis(), as `app,arg1,arg2`; `${EXTEN}` in it is the number called.
    #: Each also has a plain form, CONTEXT-plain, that hangs up at once when the app has no socket.
    contexts: Mapping[str, str] = field(default_factory=dict)
    #: Contexts whose calls are offered to several apps → what stands in their StasisBroadcast(), as
    #: `milliseconds,regex`; `${EXTEN}` in it is the number called.
    broadcasts: Mapping[str, str] = field(default_factory=dict)
    #: A caller's leg that leaves Stasis is unsubscribed, so the app hears no ChannelDestroyed; True: it does.
    caller_channel_destroyed: bool = False
    #: Time the far end of an originate takes to answer.
    answer_after_seconds: float = 0.02

    #: False: no audio at all (media legs stay silent), for load tests.
    audio: bool = True
    #: What a caller says, unless dialled with a tone of its own.
    caller_tone_hz: int = 700
    #: What the agent hears before its leg is in a bridge; None: nothing.
    idle_tone_hz: int | None = 400

    #: A crashed Asterisk comes back after this time; None: only on a restart order.
    restart_after_seconds: float | None = None
    #: Entries kept of the request log and of the event log.
    log_entries: int = 50_000

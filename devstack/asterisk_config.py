"""The configuration files of one Asterisk instance, as text.

Only what a call of ours needs is loaded, so that it starts in about a second.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from devstack.asterisk_root import INSTANCE
from shared.asterisk import config_files

ADMINISTRATOR = "devstack"
RECORDINGS = f"{INSTANCE}/recordings"
#: Signed 16 bit at 8 kHz. Asterisk writes 32 KiB at a time, 2 s of it; at higher rates MixMonitor gets the speed wrong.
RECORDING_TYPE = "sln"

MODULES = """
res_clioriginate res_timing_timerfd res_sorcery_config res_sorcery_memory res_http_websocket res_websocket_client
res_stasis res_stasis_answer res_stasis_playback res_stasis_recording res_stasis_snoop res_stasis_device_state
res_stasis_broadcast res_ari_model res_ari res_ari_applications res_ari_asterisk res_ari_bridges res_ari_channels
res_ari_device_states res_ari_endpoints res_ari_events res_ari_playbacks res_ari_recordings res_ari_sounds
app_stasis app_stasis_broadcast app_echo app_milliwatt app_playtones app_mixmonitor app_exec app_stack app_verbose
app_dial app_directed_pickup bridge_simple bridge_softmix bridge_holding bridge_builtin_features
codec_ulaw codec_alaw codec_resample format_pcm format_wav format_sln chan_websocket func_talkdetect
func_callerid func_channel func_logic func_strings func_math func_uuid func_timeout func_global pbx_config
""".split()  # noqa: SIM905  # fifty names in quotes are no clearer

#: Files whose absence Asterisk reports as an error, so that its log shows only what matters.
SILENT = (
    "ccss.conf",
    "cel.conf",
    "chan_websocket.conf",
    "features.conf",
    "manager.conf",
    "stasis.conf",
    "udptl.conf",
)

TONES = """[general]
country=us
[us]
description=United States
ringcadence=2000,4000
dial=350+440
busy=480+620/500,0/500
ring=440+480/2000,0/4000
congestion=480+620/250,0/250
"""

#: The far side of a call that somebody dials in: the extension is what that somebody does. What they hear is recorded
#: when the channel variable HEARD names the recording.
FAR = f"""[far]
exten => wait,1,Gosub(hear,s,1)
 same => n,Wait(3600)
exten => tone,1,Gosub(hear,s,1)
 same => n,Milliwatt()
exten => _play.,1,Gosub(hear,s,1)
 same => n,PlayTones(${{EXTEN:4}}/1000)
 same => n,Wait(3600)
exten => echo,1,Gosub(hear,s,1)
 same => n,Echo()
exten => busy,1,Busy(10)
exten => congestion,1,Congestion(10)
exten => reject,1,Hangup(21)
exten => ring,1,Ringing()
 same => n,Wait(3600)

[hear]
exten => s,1,Answer()
 same => n,ExecIf($["${{HEARD}}" != ""]?MixMonitor(,r({RECORDINGS}/${{HEARD}}.{RECORDING_TYPE})))
 same => n,Return()
"""


@dataclass(frozen=True, kw_only=True)
class Client:
    """A named websocket client: where media legs connect to. Times in milliseconds."""

    uri: str
    protocols: str = "media"
    connection_timeout: int = 1000
    reconnect_interval: int = 500
    reconnect_attempts: int = 1


@dataclass(kw_only=True)
class Configuration:
    """What a test wants of its Asterisk. Change it and write it again, then reload or restart."""

    #: Dialplan context of inbound calls → the Stasis app they enter.
    contexts: dict[str, str] = field(default_factory=lambda: {"inbound": "voiceai"})
    #: ARI user → password, both as plain text.
    users: dict[str, str] = field(default_factory=dict)
    #: Those of them that may only read.
    read_only: set[str] = field(default_factory=set)
    clients: dict[str, Client] = field(default_factory=dict)
    session_limit: int = 100
    keep_alive_seconds: float = 15.0
    prefix: str = ""
    #: Begins the id of each channel that Asterisk names itself.
    system_name: str = ""
    #: More of extensions.conf.
    dialplan: str = ""
    #: Where AMI listens; None for nowhere. Its user is the administrator.
    manager_port: int | None = None
    #: Further modules, and the text of further files or of others instead of those here.
    modules: tuple[str, ...] = ()
    more_files: Mapping[str, str] = field(default_factory=dict)


def escaped(value: str) -> str:
    """A value as Asterisk's configuration reads it back.

    Only `;` has to be escaped (it begins a comment); blanks around a value cannot be written at all.

    Raises:
        ValueError: no configuration file can hold it.
    """
    if value != value.strip() or any(ord(character) < 32 for character in value):
        raise ValueError("Asterisk's configuration cannot hold blanks around a value, nor control characters")
    return value.replace(";", "\\;")


def write(folder: Path, configuration: Configuration, *, port: int, password: str, modules: str) -> None:
    """Write all files of an instance into its folder `etc`."""
    for name, text in files(configuration, port=port, password=password, modules=modules).items():
        path = folder / name
        partial = path.with_name(f"{name}.partial")
        partial.write_text(text)
        partial.rename(path)


def files(configuration: Configuration, *, port: int, password: str, modules: str) -> Mapping[str, str]:
    """File name → text."""
    users = {ADMINISTRATOR: password} | configuration.users
    prefix = f"prefix={configuration.prefix.strip('/')}\n" if configuration.prefix else ""
    return (
        {
            "asterisk.conf": _asterisk(modules, configuration.system_name),
            "modules.conf": "[modules]\nautoload=no\n"
            + "".join(f"load={name}.so\n" for name in (*MODULES, *configuration.modules)),
            "logger.conf": "[logfiles]\nmessages=notice,warning,error\n",
            "http.conf": f"[general]\nenabled=yes\nbindaddr=127.0.0.1\nbindport={port}\n"
            f"sessionlimit={configuration.session_limit}\n"
            f"session_keep_alive={configuration.keep_alive_seconds * 1000:.0f}\n{prefix}",
            "ari.conf": "[general]\nenabled=yes\n"
            + "".join(_user(name, value, read_only=name in configuration.read_only) for name, value in users.items()),
            "websocket_client.conf": "".join(_client(name, value) for name, value in configuration.clients.items()),
            "extensions.conf": "".join(_inbound(context, app) for context, app in configuration.contexts.items())
            + f"{FAR}\n{configuration.dialplan}\n",
            "cdr.conf": "[general]\nenable=no\n",
        }
        | dict.fromkeys(SILENT, "[general]\n")
        | {"acl.conf": "", "indications.conf": TONES}
        | ({"manager.conf": _manager(configuration.manager_port, password)} if configuration.manager_port else {})
        | dict(configuration.more_files)
    )


def _asterisk(modules: str, system_name: str) -> str:
    places = {
        "astetcdir": f"{INSTANCE}/etc",
        "astmoddir": modules,
        "astvarlibdir": f"{INSTANCE}/lib",
        "astdbdir": f"{INSTANCE}/lib",
        "astkeydir": f"{INSTANCE}/lib",
        "astdatadir": "/usr/share/asterisk",
        "astagidir": f"{INSTANCE}/lib",
        "astspooldir": f"{INSTANCE}/spool",
        "astrundir": f"{INSTANCE}/run",
        "astlogdir": f"{INSTANCE}/log",
        "astcachedir": f"{INSTANCE}/lib",
        "astsbindir": "/usr/sbin",
    }
    directories = "".join(f"{name} => {place}\n" for name, place in places.items())
    named = f"systemname={escaped(system_name)}\n" if system_name else ""
    return f"[directories]\n{directories}\n[options]\nmaxfiles=16384\nnocolor=yes\n{named}"


def _manager(port: int, password: str) -> str:
    return (
        f"[general]\nenabled=yes\nwebenabled=yes\nbindaddr=127.0.0.1\nport={port}\n"
        f"[{ADMINISTRATOR}]\nsecret={password}\nread=all\nwrite=all\n"
    )


def _user(name: str, password: str, *, read_only: bool) -> str:
    return f"[{name}]\ntype=user\nread_only={'yes' if read_only else 'no'}\npassword={escaped(password)}\n"


def _client(name: str, client: Client) -> str:
    return (
        f"[{name}]\ntype=websocket_client\nuri={escaped(client.uri)}\nprotocols={client.protocols}\n"
        f"connection_type=per_call_config\nconnection_timeout={client.connection_timeout}\n"
        f"reconnect_interval={client.reconnect_interval}\nreconnect_attempts={client.reconnect_attempts}\n"
    )


def _inbound(context: str, app: str) -> str:
    """The dialplan we recommend (callers survive an outage of every listener for five seconds), and a plain one."""
    return f"""{config_files.dialplan(app, context=context)}
[{context}-plain]
exten => _[+0-9].,1,Stasis({app})
 same => n,Hangup()

"""

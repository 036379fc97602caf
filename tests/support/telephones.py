"""SIP telephones: another Asterisk, whose channels call a PBX and transfer their calls by REFER, as telephones do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from devstack import processes
from devstack.asterisk import RealAsterisk
from devstack.asterisk_config import Configuration
from devstack.asterisk_root import Root
from devstack.pipeline import wait_until

#: What an Asterisk loads for SIP.
MODULES = tuple(
    """
res_pjproject res_sorcery_astdb res_pjsip res_pjsip_session res_pjsip_pubsub res_pjsip_sdp_rtp res_rtp_asterisk
res_pjsip_caller_id res_pjsip_endpoint_identifier_ip res_pjsip_refer res_pjsip_nat res_pjsip_dlg_options chan_pjsip
func_pjsip_endpoint app_transfer bridge_native_rtp
""".split()  # noqa: SIM905 - sixteen names in quotes are no clearer
)
#: The context of calls that come by SIP.
CONTEXT = "sip"
_PJSIP = """[udp]
type=transport
protocol=udp
bind=127.0.0.1:{own}

[{name}]
type=aor
contact=sip:127.0.0.1:{other}

[{name}]
type=endpoint
context={context}
disallow=all
allow=ulaw
aors={name}
direct_media=no

[{name}]
type=identify
endpoint={name}
match=127.0.0.1
"""
#: What a telephone does with its call. `noted` remembers the call, for another one to be transferred to it.
_DIALPLAN = """
[does]
exten => talks,1,Wait(3600)
exten => noted,1,Set(GLOBAL(CALL)=${{CHANNEL(pjsip,call-id)}})
 same => n,Set(GLOBAL(TAGS)=%3Bto-tag%3D${{CHANNEL(pjsip,remote_tag)}}%3Bfrom-tag%3D${{CHANNEL(pjsip,local_tag)}})
 same => n,Wait(3600)
exten => blind,1,Transfer(PJSIP/sip:${{GLOBAL(NUMBER)}}@127.0.0.1:{pbx})
 same => n,Wait(0.2)
 same => n,Hangup()
exten => attended,1,Transfer(PJSIP/<sip:noted@127.0.0.1:{pbx}?Replaces=${{GLOBAL(CALL)}}${{GLOBAL(TAGS)}}>)
 same => n,Wait(0.2)
 same => n,Hangup()
"""


def files(*, own: int, other: int, name: str) -> Mapping[str, str]:
    """Return the configuration of SIP between two ports of this machine; the other side is an endpoint of this name."""
    # Of each side another range, from the port that is its own.
    first = 20000 + own % 400 * 100
    return {
        "pjsip.conf": _PJSIP.format(own=own, other=other, name=name, context=CONTEXT),
        "rtp.conf": f"[general]\nrtpstart={first}\nrtpend={first + 98}\n",
        "pjproject.conf": "[startup]\ntype=startup\nlog_level=0\n",
        "sorcery.conf": "",
    }


class Telephones:
    """The telephones of one PBX."""

    def __init__(self, asterisk: RealAsterisk) -> None:
        self._asterisk = asterisk

    def call(self, number: str, name: str, *, does: str = "talks") -> None:
        """Let a telephone call a number of the PBX."""
        answer = self._asterisk.request(
            "POST", "/channels", endpoint=f"PJSIP/{number}@pbx", context="does", extension=does, priority="1",
            channelId=name, callerId="100",
        )  # fmt: skip
        answer.raise_for_status()

    def transfer_blindly(self, name: str, number: str) -> None:
        """Let a telephone transfer its call to a number, and hang up."""
        self._asterisk.cli(f"dialplan set global NUMBER {number}")
        self._do(name, "blind")

    def transfer_to_the_noted_call(self, name: str) -> None:
        """Let a telephone transfer its call to the one that was noted, and hang up."""
        self._do(name, "attended")

    def is_up(self, name: str) -> bool:
        """Return whether a telephone talks: its call was answered, and it does nothing else with it."""
        return any(one["id"] == name and one["dialplan"]["app_name"] == "Wait" for one in self._asterisk.channels())

    def hang_up_all(self) -> None:
        for channel in self._asterisk.channels():
            self._asterisk.hang_up(channel["id"])

    def _do(self, name: str, extension: str) -> None:
        wait_until(lambda: self.is_up(name), seconds=5, what=f"telephone {name} talks")
        (channel,) = [str(one["name"]) for one in self._asterisk.channels() if one["id"] == name]
        self._asterisk.act("Redirect", channel=channel, context="does", exten=extension, priority="1")


@contextlib.contextmanager
def telephones(root: Root, folder: Path, *, own: int, pbx: int) -> Iterator[Telephones]:
    """Start telephones at a port, for the PBX at another one."""
    configuration = Configuration(
        dialplan=_DIALPLAN.format(pbx=pbx),
        manager_port=processes.free_port(),
        modules=MODULES,
        more_files=files(own=own, other=pbx, name="pbx"),
    )
    with RealAsterisk(root, folder, configuration) as running:
        yield Telephones(running)

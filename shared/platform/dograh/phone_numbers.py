"""The platform's one spelling of a dialled number: what it stores as `address_normalized`, and looks a call's up by."""

from __future__ import annotations

import re

#: Scheme, user with its `@`, host, port, and the parameters behind it.
_SIP = re.compile(r"(sips?):([^@;?]+@)?([^:;?]+)(:\d+)?([;?].*)?", re.IGNORECASE)
#: The port that goes without saying.
_SIP_PORT = {"sip": ":5060", "sips": ":5061"}
_SEPARATORS = re.compile(r"[\s()-]")
_DIGITS = re.compile(r"\d{8,15}")


def canonical(dialled: str) -> str:
    """Return the canonical form of a dialled number, an extension or a SIP address.

    `+49 (30) 1234-567` and `49301234567` → `+49301234567`; `Reception` → `reception`; `2077` → `2077`;
    `SIP:Sales@PBX.example:5060` → `sip:Sales@pbx.example`.
    """
    stripped = dialled.strip()
    if kind(stripped) == "sip_uri":
        return _canonical_sip(stripped)
    return f"+{_digits(stripped)}" if kind(stripped) == "pstn" else stripped.lower()


def kind(dialled: str) -> str:
    """Return what the platform stores as `address_type`."""
    if dialled.strip().lower().startswith(("sip:", "sips:")):
        return "sip_uri"
    return "pstn" if _DIGITS.fullmatch(_digits(dialled)) else "sip_extension"


def _digits(dialled: str) -> str:
    return _SEPARATORS.sub("", dialled).removeprefix("+")


def _canonical_sip(address: str) -> str:
    parts = _SIP.fullmatch(address)
    if parts is None:
        return address.lower()
    scheme, user, host, port, rest = (part or "" for part in parts.groups())
    shown_port = "" if port == _SIP_PORT[scheme.lower()] else port
    # The case of the user counts.
    return f"{scheme.lower()}:{user}{host.lower()}{shown_port}{rest.lower()}"

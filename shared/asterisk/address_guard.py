"""Protection against SSRF (server-side request forgery): the addresses that an endpoint may resolve to.

A tenant chooses the endpoint and must not reach our own network with it. Addresses are checked, never names: the
connecting code passes the very address that it then connects to.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from shared import errors

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _networks(*texts: str) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


#: Refused whatever the settings say. The first entry that contains the address names it.
_NEVER: tuple[tuple[str, tuple[Network, ...]], ...] = (
    ("an unspecified address", _networks("0.0.0.0/8", "::/128")),
    (
        "a cloud's metadata service",
        # AWS and most others; AWS over IPv6; Alibaba; Azure; Oracle; Google over IPv6.
        _networks(
            "169.254.169.254/32", "169.254.170.0/24", "fd00:ec2::/32", "100.100.100.200/32", "168.63.129.16/32",
            "192.0.0.192/32", "fd20:ce::254/128",
        ),
    ),
    ("a link-local address", _networks("169.254.0.0/16", "fe80::/10")),
    ("a multicast address", _networks("224.0.0.0/4", "ff00::/8")),
    ("a reserved or broadcast address", _networks("240.0.0.0/4", "192.0.0.0/24")),
)  # fmt: skip
#: The parts of IPv6 in use: unicast, private, and the forms that contain an IPv4 address. The rest is reserved.
_IPV6_IN_USE = _networks(
    "2000::/3", "fc00::/7", "fec0::/10", "::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96"
)
_LOOPBACK = _networks("127.0.0.0/8", "::1/128")
_PRIVATE = _networks(
    "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "198.18.0.0/15", "fc00::/7", "fec0::/10"
)
#: Forms of IPv6 that lead to the IPv4 address in their last 32 bits: compatible, mapped, translated, NAT64.
_IPV4_LAST = _networks("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96")
_LONGEST_LIST = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressGuard:
    """The rule. Of several networks that contain an address the narrowest counts; if two are equal, `deny` does."""

    allow: tuple[Network, ...] = ()
    deny: tuple[Network, ...] = ()
    #: Also refuses loopback and private addresses that are not in `allow`.
    strict: bool = False

    def check(self, host: str, addresses: Iterable[str]) -> None:
        """Raise EndpointRefused if one of the addresses that a host resolves to must not be connected to.

        A name that resolves to an allowed and a forbidden address is refused: that does not happen by accident.
        """
        for text in addresses:
            reason = self.complaint(text)
            if reason is not None:
                seen = "the endpoint is" if text == host else f"the endpoint's host resolves to {text},"
                raise errors.EndpointRefused(f"{seen} {reason}")

    def complaint(self, text: str) -> str | None:
        """Return why an address must not be connected to, as a predicate ("it is …"); None if it may be."""
        try:
            address = ipaddress.ip_address(text.partition("%")[0])
        except ValueError:
            return "not an address"
        return next((reason for one in _forms(address) if (reason := self._of_form(one)) is not None), None)

    def _of_form(self, address: _Address) -> str | None:
        for what, networks in _NEVER:
            if _among(address, networks):
                return f"{what}, where no Asterisk can be"
        if address.version == 6 and address not in _LOOPBACK[1] and not _among(address, _IPV6_IN_USE):
            return "a reserved or broadcast address, where no Asterisk can be"
        allowed, denied = _narrowest(address, self.allow), _narrowest(address, self.deny)
        if denied >= 0 and denied >= allowed:
            return "an address in ENDPOINT_DENY"
        if self.strict and allowed < 0:
            if _among(address, _LOOPBACK):
                return "a loopback address: ENDPOINT_GUARD is strict and ENDPOINT_ALLOW does not name it"
            if _among(address, _PRIVATE):
                return "a private address: ENDPOINT_GUARD is strict and ENDPOINT_ALLOW does not name it"
        return None


def parse_networks(text: str) -> tuple[Network, ...]:
    """Parse networks or single addresses, comma-separated. Raises ValueError that names the wrong one."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if len(names) > _LONGEST_LIST:
        raise ValueError(f"more than {_LONGEST_LIST} networks")
    found = []
    for name in names:
        try:
            found.append(ipaddress.ip_network(name))
        except ValueError:
            raise ValueError(
                f"{name!r} is not a network such as 10.0.0.0/8 or fd00::/8, or has host bits set"
            ) from None
    return tuple(found)


def _forms(address: _Address) -> list[_Address]:
    """Return the address, or the IPv4 addresses that it is translated to on its way."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    number = int(address)
    forms: list[_Address] = [address]
    if _among(address, _IPV4_LAST) and number > 1:
        # The form itself means nothing: only the IPv4 address in it is judged.
        forms = [ipaddress.IPv4Address(number & 0xFFFFFFFF)]
    if address.sixtofour is not None:
        forms.append(address.sixtofour)
    if address.teredo is not None:
        forms.extend(address.teredo)
    return forms


def _among(address: _Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)


def _narrowest(address: _Address, networks: Iterable[Network]) -> int:
    """Return the length of the longest prefix that contains the address; -1 if none does."""
    return max((network.prefixlen for network in networks if address in network), default=-1)

"""Which addresses an endpoint may lead to: a PBX owner chooses the endpoint, and must not reach into our own network.

Judges addresses only, never names: whoever connects asks about the very address it then connects to.
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


#: Never an Asterisk's, whatever the settings say. The first that holds the address names it.
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
#: What of IPv6 is in use: unicast, private, and the forms that hold an IPv4 address. All else is reserved.
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
    """The rule. Where an address is in several of its networks the narrowest counts, and of two the same, `deny`."""

    allow: tuple[Network, ...] = ()
    deny: tuple[Network, ...] = ()
    #: Also refuses loopback and private addresses that are not in `allow`.
    strict: bool = False

    def check(self, host: str, addresses: Iterable[str]) -> None:
        """Raises EndpointRefused when one of the addresses a host name leads to must not be connected to.

        A name that leads to a good and to a bad address is refused whole: nobody has that by accident.
        """
        for text in addresses:
            reason = self.complaint(text)
            if reason is not None:
                seen = "the endpoint is" if text == host else f"the endpoint's host leads to {text},"
                raise errors.EndpointRefused(f"{seen} {reason}")

    def complaint(self, text: str) -> str | None:
        """Why an address must not be connected to, in words that follow "it is"; None when it may be."""
        try:
            address = ipaddress.ip_address(text.partition("%")[0])
        except ValueError:
            return "not an address"
        return next((reason for one in _forms(address) if (reason := self._of_form(one)) is not None), None)

    def _of_form(self, address: _Address) -> str | None:
        for what, networks in _NEVER:
            if _among(address, networks):
                return f"{what}, where no Asterisk is"
        if address.version == 6 and address not in _LOOPBACK[1] and not _among(address, _IPV6_IN_USE):
            return "a reserved or broadcast address, where no Asterisk is"
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
    """Networks or single addresses, comma-separated. Raises ValueError; says which is none."""
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
    """The address itself, and the IPv4 addresses it would be translated to on its way."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    number = int(address)
    forms: list[_Address] = [address]
    if _among(address, _IPV4_LAST) and number > 1:
        # The form says nothing of its own: only what it leads to is judged.
        forms = [ipaddress.IPv4Address(number & 0xFFFFFFFF)]
    if address.sixtofour is not None:
        forms.append(address.sixtofour)
    if address.teredo is not None:
        forms.extend(address.teredo)
    return forms


def _among(address: _Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)


def _narrowest(address: _Address, networks: Iterable[Network]) -> int:
    """The length of the longest prefix that holds the address; -1 when none does."""
    return max((network.prefixlen for network in networks if address in network), default=-1)

"""The guard: every kind of address, in every form that leads to it."""

from __future__ import annotations

import pytest

from shared import errors
from shared.asterisk import address_guard

OPEN = address_guard.AddressGuard()
STRICT = address_guard.AddressGuard(strict=True)
NETWORKS = address_guard.parse_networks

NEVER = {
    "0.0.0.0": "unspecified",
    "0.1.2.3": "unspecified",
    "::": "unspecified",
    "169.254.169.254": "metadata",
    "169.254.170.2": "metadata",
    "fd00:ec2::254": "metadata",
    "fd20:ce::254": "metadata",
    "100.100.100.200": "metadata",
    "168.63.129.16": "metadata",
    "192.0.0.192": "metadata",
    "169.254.0.1": "link-local",
    "fe80::1": "link-local",
    "fe80::1%eth0": "link-local",
    "febf:ffff::1": "link-local",
    "224.0.0.1": "multicast",
    "239.255.255.250": "multicast",
    "ff02::1": "multicast",
    "240.0.0.1": "reserved or broadcast",
    "255.255.255.255": "reserved or broadcast",
    "192.0.0.8": "reserved or broadcast",
    "4000::1": "reserved or broadcast",
    "100::1": "reserved or broadcast",
    # NAT64 of a network's own: where in it the IPv4 address is, only that network knows.
    "64:ff9b:1::a9fe:a9fe": "reserved or broadcast",
}
#: The same address on its way over IPv6: mapped, compatible, translated, NAT64, 6to4, Teredo.
FORMS = [
    "::ffff:{dotted}",
    "::{dotted}",
    "::ffff:0:{dotted}",
    "64:ff9b::{dotted}",
    "2002:{hex}::1",
    "2001:0:102:304::{inverted}",
    "2001:0:{hex}::fefd:fcfb",
]
PUBLIC = ["8.8.8.8", "203.0.113.9", "2a00:1450::1", "64:ff9b::808:808", "::ffff:8.8.8.8", "2002:808:808::1"]
LOOPBACK = ["127.0.0.1", "127.255.255.254", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"]
PRIVATE = [
    "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "198.18.0.1", "fd12::1", "fc00::1",
    "fec0::1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:c0a8:101::",
]  # fmt: skip


@pytest.mark.parametrize(("address", "what"), NEVER.items())
def test_no_setting_lets_through_where_no_asterisk_is(address: str, what: str) -> None:
    for allow in ("", "0.0.0.0/0, ::/0"):
        reason = address_guard.AddressGuard(allow=NETWORKS(allow)).complaint(address)
        assert reason is not None, allow
        assert what in reason, allow


@pytest.mark.parametrize("address", [address for address in NEVER if "." in address])
def test_no_form_of_an_address_leads_around_the_guard(address: str) -> None:
    parts = [int(part) for part in address.split(".")]
    high, low = parts[0] << 8 | parts[1], parts[2] << 8 | parts[3]
    inverted = f"{high ^ 0xFFFF:x}:{low ^ 0xFFFF:x}"
    for form in FORMS:
        written = form.format(dotted=address, hex=f"{high:x}:{low:x}", inverted=inverted)
        assert OPEN.complaint(written) is not None, written


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_let_through(address: str) -> None:
    assert OPEN.complaint(address) is None
    assert STRICT.complaint(address) is None


@pytest.mark.parametrize(("addresses", "what"), [(LOOPBACK, "loopback"), (PRIVATE, "private")])
def test_our_own_network_is_let_through_unless_the_guard_is_strict(addresses: list[str], what: str) -> None:
    for address in addresses:
        assert OPEN.complaint(address) is None, address
        reason = STRICT.complaint(address)
        assert reason is not None, address
        assert f"a {what} address: ENDPOINT_GUARD is strict" in reason


@pytest.mark.parametrize(
    ("allow", "deny", "let_through"),
    [
        ("10.0.0.0/8", "", {"10.1.2.3": True, "10.9.9.9": True, "192.168.0.1": False, "8.8.8.8": True}),
        ("", "8.8.0.0/16", {"8.8.8.8": False, "8.9.8.8": True, "::ffff:8.8.8.8": False, "10.0.0.1": False}),
        ("10.0.0.0/8", "10.1.0.0/16", {"10.1.2.3": False, "10.9.9.9": True}),
        ("10.1.0.0/16", "10.0.0.0/8", {"10.1.2.3": True, "10.9.9.9": False}),
        ("10.0.0.0/8", "10.0.0.0/8", {"10.1.2.3": False}),
        ("fd00::/8", "fd00::5/128", {"fd00::1": True, "fd00::5": False}),
        ("8.0.0.0/8", "0.0.0.0/0", {"8.8.8.8": True, "9.9.9.9": False}),
        ("127.0.0.1", "", {"127.0.0.1": True, "127.0.0.2": False}),
    ],
)
def test_the_narrower_network_counts(allow: str, deny: str, let_through: dict[str, bool]) -> None:
    rule = address_guard.AddressGuard(allow=NETWORKS(allow), deny=NETWORKS(deny), strict=True)
    assert {address: rule.complaint(address) is None for address in let_through} == let_through


def test_one_bad_address_of_a_name_refuses_the_name() -> None:
    with pytest.raises(
        errors.EndpointRefused, match=r"host resolves to 169\.254\.169\.254, a cloud's metadata"
    ) as caught:
        OPEN.check("pbx.example", ["8.8.8.8", "169.254.169.254"])
    assert not caught.value.may_have_acted
    with pytest.raises(errors.EndpointRefused, match="the endpoint is a link-local address"):
        OPEN.check("169.254.1.1", ["169.254.1.1"])
    OPEN.check("pbx.example", ["8.8.8.8", "10.0.0.1"])


def test_what_is_no_address_is_refused() -> None:
    assert OPEN.complaint("pbx.example") == "not an address"


@pytest.mark.parametrize(
    "text", ["10.0.0.0/8,x", "10.0.0.1/8", "10.0.0.0/33", "pbx.example", ",".join(["10.0.0.1"] * 101)]
)
def test_a_list_of_networks_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="network"):
        NETWORKS(text)


def test_a_list_of_networks_is_read() -> None:
    assert [str(network) for network in NETWORKS(" 10.0.0.0/8, ,fd00::/8,127.0.0.1 ")] == [
        "10.0.0.0/8", "fd00::/8", "127.0.0.1/32",
    ]  # fmt: skip

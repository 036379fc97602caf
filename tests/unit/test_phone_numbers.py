"""The platform's one spelling of a number: contract points of its newest layout, and their neighbours."""

from __future__ import annotations

import pytest

from shared.platform.dograh import phone_numbers


@pytest.mark.parametrize(
    ("dialled", "canonical", "kind"),
    [
        ("+49301234567", "+49301234567", "pstn"),
        ("49301234567", "+49301234567", "pstn"),
        (" +49 (30) 1234-567 ", "+49301234567", "pstn"),
        ("12345678", "+12345678", "pstn"),
        ("123456789012345", "+123456789012345", "pstn"),
        ("1234567", "1234567", "sip_extension"),
        ("1234567890123456", "1234567890123456", "sip_extension"),
        ("++49301234567", "++49301234567", "sip_extension"),
        ("+49.30.1234567", "+49.30.1234567", "sip_extension"),
        ("0049301234567", "+0049301234567", "pstn"),
        ("2077", "2077", "sip_extension"),
        ("20-77", "20-77", "sip_extension"),
        ("Reception", "reception", "sip_extension"),
        (" Front Desk ", "front desk", "sip_extension"),
        ("*43#", "*43#", "sip_extension"),
        ("s", "s", "sip_extension"),
        ("SIP:Sales@PBX.example:5060", "sip:Sales@pbx.example", "sip_uri"),
        ("sip:Sales@PBX.example:5061", "sip:Sales@pbx.example:5061", "sip_uri"),
        ("sips:Sales@PBX.example:5061", "sips:Sales@pbx.example", "sip_uri"),
        ("sip:Sales@PBX.example:50600", "sip:Sales@pbx.example:50600", "sip_uri"),
        ("sip:PBX.example", "sip:pbx.example", "sip_uri"),
        ("sip:A@PBX:5060;Transport=UDP?X=Y", "sip:A@pbx;transport=udp?x=y", "sip_uri"),
        ("sip:", "sip:", "sip_uri"),
        ("SIP:A@B@C", "sip:A@b@c", "sip_uri"),
        ("unknown", "unknown", "sip_extension"),
    ],
)
def test_a_number_has_the_platform_s_canonical_form(dialled: str, canonical: str, kind: str) -> None:
    assert phone_numbers.canonical(dialled) == canonical
    assert phone_numbers.kind(dialled) == kind
    assert phone_numbers.canonical(canonical) == canonical, "what is stored is found by itself"

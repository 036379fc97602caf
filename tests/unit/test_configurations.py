"""A tenant's configuration: canonical or refused, and its password never shown."""

from __future__ import annotations

import traceback
from typing import Any

import pytest

from shared import errors
from shared.platform.dograh import telephony_configuration

#: One DER sequence each, as far as can be told without a library.
PEM_ONE = "-----BEGIN CERTIFICATE-----\nMAMBAQE=\n-----END CERTIFICATE-----\n"
PEM_TWO = "-----BEGIN CERTIFICATE-----\nMAMBAQI=\n-----END CERTIFICATE-----\n"
PASSWORD = "hunter2 & # % + :"
VALUE: dict[str, Any] = {
    "provider": "ari",
    "ari_endpoint": "http://pbx.example:8088",
    "app_name": "voiceai",
    "app_password": PASSWORD,
    "ws_client_name": "media",
    "inbound_workflow_id": None,
    "from_numbers": [],
}


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("http://pbx.example", "http://pbx.example"),
        ("http://pbx.example/", "http://pbx.example"),
        ("  http://pbx.example\n", "http://pbx.example"),
        ("HTTP://Pbx.Example:80/asterisk/", "http://pbx.example/asterisk"),
        ("https://pbx.example:443", "https://pbx.example"),
        ("https://pbx.example:80", "https://pbx.example:80"),
        ("http://pbx.example:443", "http://pbx.example:443"),
        ("http://pbx.example:8088", "http://pbx.example:8088"),
        ("http://pbx.example.", "http://pbx.example"),
        ("http://pbx.example/ari", "http://pbx.example"),
        ("http://pbx.example/ari/", "http://pbx.example"),
        ("http://pbx.example//ari//", "http://pbx.example"),
        ("https://pbx.example/asterisk", "https://pbx.example/asterisk"),
        ("https://pbx.example/Asterisk/Two/ari", "https://pbx.example/Asterisk/Two"),
        ("http://127.0.0.1:8088", "http://127.0.0.1:8088"),
        ("http://[::1]:8088", "http://[::1]:8088"),
        ("http://[2001:DB8::1]", "http://[2001:db8::1]"),
    ],
)
def test_an_endpoint_has_one_spelling(text: str, canonical: str) -> None:
    assert telephony_configuration.canonical_endpoint(text) == canonical
    assert telephony_configuration.canonical_endpoint(canonical) == canonical


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "must begin with http"),
        ("pbx.example:8088", "must begin with http"),
        ("//pbx.example", "must begin with http"),
        ("ftp://pbx.example", "must begin with http"),
        ("file:///etc/passwd", "must begin with http"),
        ("ws://pbx.example", "must begin with http"),
        ("http://", "no host"),
        ("http://:8088", "no host"),
        ("http://./", "no host"),
        ("http://pbx example", "no host, or a space"),
        ("http://pbx.example/a b", "a space"),
        ("http://pbx.example:port", "not a URL"),
        ("http://pbx.example:99999", "not a URL"),
        ("http://[::1", "not a URL"),
        ("http://voiceai@pbx.example", "must not hold credentials"),
        ("http://@pbx.example", "must not hold credentials"),
        ("http://voiceai:hunter2@pbx.example", "must not hold credentials"),
        ("http://voiceai:hun@ter2@pbx.example", "must not hold credentials"),
        ("http://pbx.example?api_key=hunter2", "must have no"),
        ("http://pbx.example/#hunter2", "must have no"),
    ],
)
def test_what_is_no_endpoint_is_refused(text: str, reason: str) -> None:
    with pytest.raises(errors.InvalidConfiguration, match=reason) as caught:
        telephony_configuration.canonical_endpoint(text)
    assert "hunter2" not in str(caught.value)


def test_one_name_is_both_user_and_app() -> None:
    assert telephony_configuration.parse(VALUE) == telephony_configuration.Configuration(
        endpoint="http://pbx.example:8088", app="voiceai", user="voiceai", password=PASSWORD
    )


@pytest.mark.parametrize("field", ["ari_endpoint", "app_name", "app_password"])
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "is missing"),
        ("", "is missing"),
        (5, "is not text"),
        (["x"], "is not text"),
        ("x" * 1025, "is too long"),
        ("hunter2\x00", "control characters"),
        ("hunter2\n", "control characters"),
        ("hunter2\ud800", "not text|control characters"),
    ],
)
def test_a_wrong_field_is_named_and_its_value_not_shown(field: str, value: object, reason: str) -> None:
    with pytest.raises(errors.InvalidConfiguration, match=f"{field} .*({reason})") as caught:
        telephony_configuration.parse(VALUE | {field: value})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("value", [None, [], "text", 5, [VALUE]])
def test_what_is_no_object_is_refused(value: object) -> None:
    with pytest.raises(errors.InvalidConfiguration, match="not a JSON object"):
        telephony_configuration.parse(value)


def test_a_password_is_never_shown() -> None:
    assert PASSWORD not in repr(telephony_configuration.parse(VALUE))
    for broken in ({"ari_endpoint": "ftp://x"}, {"app_name": None}, {"app_password": PASSWORD + "\x01"}):
        with pytest.raises(errors.InvalidConfiguration) as caught:
            telephony_configuration.parse(VALUE | broken)
        assert PASSWORD not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("value", "ours"),
    [
        (VALUE, True),
        ({"provider": "ari"}, True),
        ({"provider": "twilio"}, False),
        ({"provider": ["ari"]}, False),
        ({}, False),
        (["ari"], False),
        ("ari", False),
        (None, False),
    ],
)
def test_which_configurations_are_ours(value: object, *, ours: bool) -> None:
    assert telephony_configuration.is_ari(value) is ours


@pytest.mark.parametrize(
    ("bundle", "canonical"),
    [
        (None, None),
        ("", None),
        (PEM_ONE, PEM_ONE),
        (PEM_ONE.replace("\n", "\r\n"), PEM_ONE),
        (PEM_ONE.replace("MAMB", "  MA\n  MB\n"), PEM_ONE),
        (f"subject=Ümläut\n{PEM_ONE}\nissuer=b\n{PEM_TWO}trailing", PEM_ONE + PEM_TWO),
        (PEM_TWO + PEM_ONE, PEM_TWO + PEM_ONE),
    ],
)
def test_a_ca_bundle_has_one_spelling(bundle: object, canonical: str | None) -> None:
    value = VALUE | {"ari_endpoint": "https://pbx.example", "ari_ca_bundle": bundle}
    assert telephony_configuration.parse(value).ca_bundle == canonical
    assert telephony_configuration.canonical_bundle(canonical) == canonical


@pytest.mark.parametrize(
    ("bundle", "reason"),
    [
        (5, "not text"),
        ([PEM_ONE], "not text"),
        ("  ", "something else than whole certificates"),
        ("hunter2", "something else than whole certificates"),
        (PEM_ONE + PEM_TWO[:-10], "something else than whole certificates"),
        (PEM_ONE.replace("CERTIFICATE", "X509 CRL"), "something else than whole certificates"),
        (PEM_ONE.replace("MAMB", "M#MB"), "something else than whole certificates"),
        (PEM_ONE.replace("MAMBAQE=", ""), "damaged"),
        (PEM_ONE.replace("MAMBAQE=", "MAMBAQE"), "damaged"),
        (PEM_ONE.replace("MAMBAQE=", "MAQBAQE="), "damaged"),
        (PEM_ONE.replace("MAMBAQE=", "AAAA"), "damaged"),
        (PEM_ONE.replace("MAMBAQE=", "MIL/"), "damaged"),
        (PEM_ONE + "-----BEGIN EC PRIVATE KEY-----\nhunter2\n-----END EC PRIVATE KEY-----", "private key"),
        (PEM_ONE * 300, "longer than 16384 characters: give only the authority"),
    ],
)
def test_what_is_no_ca_bundle_is_refused(bundle: object, reason: str) -> None:
    with pytest.raises(errors.InvalidConfiguration, match=f"ari_ca_bundle .*{reason}") as caught:
        telephony_configuration.parse(VALUE | {"ari_endpoint": "https://pbx.example", "ari_ca_bundle": bundle})
    assert "hunter2" not in str(caught.value)


def test_a_ca_bundle_for_an_endpoint_without_tls_is_refused() -> None:
    with pytest.raises(errors.InvalidConfiguration, match="of no use to http://"):
        telephony_configuration.parse(VALUE | {"ari_ca_bundle": PEM_ONE})

"""A tenant's configuration: canonical or refused, and its password never shown."""

from __future__ import annotations

import traceback
from typing import Any

import pytest

from shared import errors
from shared.asterisk import endpoint
from shared.asterisk.endpoint import Configuration
from shared.call.call_settings import CallSettings
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


def test_one_name_is_both_user_and_app() -> None:
    assert telephony_configuration.parse(VALUE) == Configuration(
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


@pytest.mark.parametrize("name", ["voice:ai", "voice,ai", " voiceai", "voiceai ", "voiceai\u00a0"])
def test_an_app_name_that_would_be_read_as_something_else_is_refused(name: str) -> None:
    """A colon ends the user in an HTTP header, a comma the app in a URL, and Asterisk strips its names."""
    with pytest.raises(errors.InvalidConfiguration, match="app_name contains a colon, a comma, or a blank"):
        telephony_configuration.parse(VALUE | {"app_name": name})


@pytest.mark.parametrize("name", ["voice ai", "voice/ai?#%&", "größe", "a.b-c_d", 'voice"ai', "voice;ai", "voice(ai"])
def test_an_app_name_that_is_sent_as_it_is_is_accepted(name: str) -> None:
    assert telephony_configuration.parse(VALUE | {"app_name": name}).app == name


def test_a_websocket_client_that_fits_into_no_request_is_refused() -> None:
    with pytest.raises(errors.InvalidConfiguration, match="ws_client_name is longer than 256 characters"):
        telephony_configuration.parse_call_settings(VALUE | {"ws_client_name": "m" * 257})


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
    assert endpoint.canonical_bundle(canonical) == canonical


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
    with pytest.raises(errors.InvalidConfiguration, match="has no effect with http://"):
        telephony_configuration.parse(VALUE | {"ari_ca_bundle": PEM_ONE})


def test_data_of_another_pbx_is_refused_by_name() -> None:
    with pytest.raises(errors.InvalidConfiguration, match="external_pbx is not served"):
        telephony_configuration.parse(VALUE | {"external_pbx": {"type": "vicidial"}})
    assert telephony_configuration.parse(VALUE | {"external_pbx": None}) == telephony_configuration.parse(VALUE)


SETTINGS: dict[str, Any] = {"ws_client_name": "media"}


def test_the_default_call_settings() -> None:
    usual = CallSettings(media_client="media", call_seconds=None, dial_template="PJSIP/{number}", caller_id=None)
    assert telephony_configuration.parse_call_settings(SETTINGS) == usual


def test_call_settings_of_a_configuration() -> None:
    value = SETTINGS | {
        "ari_max_call_seconds": 90,
        "ari_dial_template": "PJSIP/{number}@trunk",
        "from_numbers": ["", 5, "+4930 1", "+49301"],
    }
    assert telephony_configuration.parse_call_settings(value) == CallSettings(
        media_client="media", call_seconds=90.0, dial_template="PJSIP/{number}@trunk", caller_id="+49301"
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ws_client_name": None}, "ws_client_name is missing"),
        ({"ws_client_name": ["media"]}, "ws_client_name is not printable text"),
        *(
            ({"ari_max_call_seconds": seconds}, "ari_max_call_seconds is not a number of seconds")
            for seconds in ("90", 0, -1, True, 86401, float("nan"), [90])
        ),
        *(
            ({"ari_dial_template": template}, "ari_dial_template is not like PJSIP/")
            for template in (
                "PJSIP/100", "{number}", "PJSIP{number}", "PJSIP/{number}{number}", "PJSIP/{number}&PJSIP/9",
                "PJSIP/{number},30", "PJSIP/{number} ", "Local/{number}@a(b)", "PJSIP/{number}\n", "PJSIP/{nummer}", 5,
            )
        ),
    ],
)  # fmt: skip
def test_unusable_call_settings_are_named(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(errors.InvalidConfiguration, match=reason):
        telephony_configuration.parse_call_settings(SETTINGS | changes)


@pytest.mark.parametrize("value", [None, [], "x", 5])
def test_what_is_no_configuration_has_no_call_settings(value: object) -> None:
    with pytest.raises(errors.InvalidConfiguration):
        telephony_configuration.parse_call_settings(value)
    assert not telephony_configuration.continue_in_dialplan(value)


@pytest.mark.parametrize(
    ("setting", "continue_in_dialplan"), [("continue", True), ("hangup", False), (None, False), (5, False)]
)
def test_refused_callers_continue_only_where_it_says_so(setting: object, continue_in_dialplan: bool) -> None:
    assert telephony_configuration.continue_in_dialplan({"ari_on_refusal": setting}) is continue_in_dialplan


def test_what_is_written_reads_back() -> None:
    value = telephony_configuration.write(
        endpoint="https://pbx.example",
        app="voiceai",
        password=PASSWORD,
        media_client="media",
        inbound_workflow_id=7,
        caller_ids=["+49301"],
        continue_in_dialplan=True,
        dial_template="PJSIP/{number}@trunk",
        call_seconds=90,
    )
    assert telephony_configuration.is_ari(value)
    assert telephony_configuration.read(value) == Configuration(
        endpoint="https://pbx.example", app="voiceai", user="voiceai", password=PASSWORD
    )
    assert telephony_configuration.parse_call_settings(value) == CallSettings(
        media_client="media", call_seconds=90.0, dial_template="PJSIP/{number}@trunk", caller_id="+49301"
    )
    assert telephony_configuration.media_client(value) == "media"
    assert telephony_configuration.continue_in_dialplan(value)
    assert value["inbound_workflow_id"] == 7


def test_what_could_not_be_read_is_not_written() -> None:
    with pytest.raises(errors.InvalidConfiguration, match="ari_dial_template"):
        telephony_configuration.write(
            endpoint="http://pbx.example",
            app="voiceai",
            password=PASSWORD,
            media_client="media",
            inbound_workflow_id=None,
            dial_template="PJSIP",
        )

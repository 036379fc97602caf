"""Secrets are found by name and by value, and telephone numbers by what is beside them: no id, time or port is one."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import redaction
from shared.call import ids


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("+49301234567 is busy", "+*******4567 is busy"),
        ("caller +49 30 1234567, gone", "caller +** ** ***4567, gone"),
        ("tel=%2B49301234567", "tel=%2B*******4567"),
        ("5550100 → 5551234, channel 1762000000.12", "****100 → ****234, channel 1762000000.12"),
        ("no route for the number 5551234", "no route for the number ****234"),
        ("(030) 123 4567", "(***) *** 4567"),
        ("555-0100-1234", "***-****-1234"),
        ("PJSIP/5551234-00000012", "PJSIP/****234-00000012"),
        ("Local/4930123@inbound-00000001;1", "Local/****123@inbound-00000001;1"),
        ("sip:5551234@10.0.0.1:5060", "sip:****234@10.0.0.1:5060"),
        ("{'caller_number': '100', 'run': 12345678}", "{'caller_number': '*00', 'run': 12345678}"),
        ('{"caller":{"number":"5551234"},"exten":"100"}', '{"caller":{"number":"****234"},"exten":"*00"}'),
        ('{\\"number\\":\\"5551234\\"}', '{\\"number\\":\\"****234\\"}'),
        ("/channels?endpoint=PJSIP%2F5551234%40trunk&app=a", "/channels?endpoint=PJSIP%2F****234%40trunk&app=a"),
        ("Local%2F%2B49301234567%40out", "Local%2F%2B*******4567%40out"),
        ("DAHDI/g1/5551234", "DAHDI/g1/****234"),
        ("SIP/trunk/0049-30-1234567", "SIP/trunk/****-**-***4567"),
        ("PJSIP/0049-30-1234567-0000001a", "PJSIP/****-**-***4567-0000001a"),
        ("tel:555-123-4567", "tel:***-***-4567"),
        ("caller=49301234567, called='100'", "caller=*******4567, called='*00'"),
        ("no active phone number 0049-30-1234567.", "no active phone number ****-**-***4567."),
        ("5551234: rejected", "****234: rejected"),
        ('callerid="Bob" <1001>', 'callerid="Bob" <**01>'),
    ],
)
def test_a_number_is_masked_wherever_it_stands(text: str, masked: str) -> None:
    assert redaction.mask_numbers(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "0c9a4e52-9c5e-5c53-8a5f-6d0a5d6a2f11",
        "12345678-1234-4234-8234-123456789012",
        "aip-k3x9q2-0c9a4e529c5e5c538a5f6d0a5d6a2f11-m1",
        "channel 1762000000.12",
        "run 1234567 of organization 7654321",
        "at_ms=1762000000123, pid=12345678",
        "2026-11-29T21:30:32.123456Z",
        "2026-11-29 21:30:32",
        "127.0.0.1:5060 and [::1]:50600 and host:8088",
        "http://host:8088/ari/channels/1762000000.12",
        "took 1234567 ms",
        "version 1.2.3456789",
        "unreadable number of 12 things",
        "",
    ],
)
def test_an_id_a_time_a_port_or_an_amount_is_no_number(text: str) -> None:
    assert redaction.mask_numbers(text) == text


@pytest.mark.parametrize(
    ("number", "masked"),
    [
        ("+49301234567", "+*******4567"),
        ("5551234", "****234"),
        ("5550", "**50"),
        ("100", "*00"),
        ("12", "*2"),
        ("1", "*"),
        ("anonymous", "anonymous"),
        ("", ""),
    ],
)
def test_two_to_four_digits_are_left(number: str, masked: str) -> None:
    assert redaction.mask_number(number) == masked


@pytest.mark.parametrize(
    "spelled",
    [
        "p w%r'd\"ö+/",
        "p%20w%25r%27d%22%C3%B6%2B/",
        "p+w%25r%27d%22%C3%B6%2B%2F",
        "p%20w%25r%27d%22%c3%b6%2b%2f",
        "p w%r'd\\\"\\u00f6+/",
    ],
)
def test_a_secret_is_found_by_its_value_however_it_is_spelled(spelled: str) -> None:
    secrets = redaction.Secrets()
    assert secrets.redact(spelled) == spelled
    secrets.add("p w%r'd\"ö+/")
    assert secrets.redact(f"a {spelled} b {spelled}") == "a [redacted] b [redacted]"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("IAX2/trunk:hunter@host/100", "IAX2/trunk:[redacted]@host/100"),
        ("endpoint=SIP%2Ftrunk%3Ahunter%40host", "endpoint=SIP%2Ftrunk%3A[redacted]%40host"),
        ("PJSIP/trunk/sip:100@host and SIP/sip:100@host", "PJSIP/trunk/sip:100@host and SIP/sip:100@host"),
    ],
)
def test_a_password_in_what_is_dialled_is_none_of_a_number_s_text(text: str, clean: str) -> None:
    assert redaction.redact_named(text) == clean


def digits(least: int, most: int) -> st.SearchStrategy[str]:
    return st.text("0123456789", min_size=least, max_size=most)


def joined(*parts: str | st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.tuples(*(st.just(part) if isinstance(part, str) else part for part in parts)).map("".join)


APART = st.sampled_from([" ", "-", "/", " / ", " - "])
AREA = st.builds("0{}{}".format, st.integers(1, 9), digits(1, 3))
NUMBERS = st.one_of(
    joined(AREA, APART, digits(3, 4), APART, digits(3, 4)),
    joined(AREA, APART, digits(5, 8)),
    joined("(", AREA, ") ", digits(4, 4), APART, digits(4, 4)),
    joined("(", AREA, ")", digits(5, 7)),
    joined("+", st.integers(1, 99).map(str), APART, digits(2, 3), APART, digits(5, 7)),
    joined("+49 (0) ", digits(2, 3), " ", digits(5, 7)),
    joined(digits(3, 3), ".", digits(3, 3), ".", digits(4, 4)),
    joined("(", digits(3, 3), ") ", digits(3, 3), "-", digits(4, 4)),
    joined("1-", digits(3, 3), "-", digits(3, 3), "-", digits(4, 4)),
    joined(st.sampled_from(["tel:", "tel:+", "sip:", "sips:+", "tel:%2B"]), digits(8, 12)),
    joined("tel:+1-(", digits(3, 3), ")-", digits(3, 3), "-", digits(4, 4)),
)
MOMENTS = st.floats(0, 4e9).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))
NO_NUMBERS = st.one_of(
    MOMENTS.map(datetime.isoformat),
    MOMENTS.map(str),
    MOMENTS.map(lambda at: at.strftime("%d/%m/%Y %H:%M:%S")),
    st.uuids().map(str),
    st.uuids().map(lambda each: ids.media_id("aip-", each, 1)),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
    joined(st.sampled_from(["sip:", "sip:alice@", "http://"]), st.ip_addresses(v=4).map(str), ":5060"),
    joined("sip:", st.ip_addresses(v=4).map(str)),
    joined(digits(10, 10), ".", digits(1, 6)),
    joined(digits(1, 3), ".", digits(1, 3), ".", digits(1, 3)),
    joined(digits(1, 9), st.sampled_from([" ms", " s", "ms", "s", " bytes"])),
    joined("call ", digits(7, 10)),
)
AROUND = st.sampled_from(["{}", "at {}", "{}, then", "it was {} before", "'{}'"])


@given(number=NUMBERS, around=AROUND)
def test_a_number_in_any_form_shows_its_last_digits_only(number: str, around: str) -> None:
    masked = redaction.mask_numbers(around.format(number))
    assert sum(char.isdigit() for char in masked.replace("%2B", "")) <= 4, masked


@given(text=NO_NUMBERS, around=AROUND)
def test_what_is_no_number_is_shown(text: str, around: str) -> None:
    assert redaction.mask_numbers(around.format(text)) == around.format(text)


@pytest.mark.parametrize(
    "filler", [" ", '"', "\\", "= ", "-1", "/1", "(1", "+1 ", "030 ", " 030", "03", "(030)", "555.", "12 ", "+1/"]
)
def test_no_text_of_a_peer_holds_the_process_up(filler: str) -> None:
    # A search that tries each way to part the filler takes some seconds for these, and no other thread runs meanwhile.
    for name in ("number", "PJSIP/", "sip:111", "token=", "://a:", "SIP/a:", "(030) 1", "tel:+"):
        began = time.process_time()
        redaction.mask_numbers(redaction.redact(name + filler * 8_000))
        assert time.process_time() - began < 0.3, name


def test_of_secrets_that_begin_alike_the_longest_is_taken_out() -> None:
    secrets = redaction.Secrets()
    secrets.add("hunter-2")
    secrets.add("hunter-2-and-more")
    assert secrets.redact("hunter-2-and-more, hunter-2, hunter") == "[redacted], [redacted], hunter"


def test_the_password_of_a_url_is_known_as_it_is_and_as_it_is_spelled_there() -> None:
    secrets = redaction.Secrets()
    secrets.add_url("postgresql://u:hun%40ter2%21@host/db")
    assert secrets.redact("hun@ter2! hun%40ter2%21") == "[redacted] [redacted]"
    secrets.add_url("postgresql://host/db")
    secrets.add_url("http://[broken")


def test_so_many_secrets_are_known_the_last_ones() -> None:
    secrets = redaction.Secrets(most=3)
    for number in range(10):
        secrets.add(f"secret-{number}")
    text = " ".join(f"secret-{number}" for number in range(10))
    assert secrets.redact(text).split() == [*(f"secret-{number}" for number in range(7)), *["[redacted]"] * 3]
    assert len(secrets._beginning) == 1


def test_what_is_too_short_to_be_told_from_a_word_is_found_by_its_name_only() -> None:
    secrets = redaction.Secrets()
    secrets.add("call")
    assert secrets.redact("a call") == "a call"
    assert redaction.redact("password='call'") == "password='[redacted]'"

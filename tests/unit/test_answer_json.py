"""JSON of answers: read as the standard library reads it, or refused; a long list in pieces."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from shared import errors
from shared.asterisk import answer_json

SEPARATORS: list[tuple[str, str] | None] = [None, (",", ":"), (" , ", " : ")]


def made_at_random(rng: random.Random, depth: int = 0) -> Any:
    match rng.randrange(7 if depth < 3 else 5):
        case 0:
            return rng.choice([None, True, rng.randrange(10 ** rng.randrange(1, 18))])
        case 1:
            return rng.random() * 10.0 ** rng.randrange(-5, 5)
        case 2:
            return "".join(rng.choice('ab",[]{}\\é\U0001f600 \n') for _ in range(rng.randrange(30)))
        case 3 | 4:
            return "x" * rng.randrange(500)
        case 5:
            return [made_at_random(rng, depth + 1) for _ in range(rng.randrange(5))]
    return {str(key): made_at_random(rng, depth + 1) for key in range(rng.randrange(5))}


def test_a_list_read_in_pieces_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(100):
        says_the_same(seed, monkeypatch)


def says_the_same(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr(answer_json, "_SMALL", 10**9)
    monkeypatch.setattr(answer_json, "_BYTES_AN_ENTRY", 1)
    document = [made_at_random(rng) for _ in range(rng.randrange(1, 80))]
    longest = max(len(json.dumps(entry, indent=1)) for entry in document)
    text = json.dumps(
        document, ensure_ascii=seed % 2 == 0, indent=rng.choice([None, 1]), separators=rng.choice(SEPARATORS)
    )
    for piece in (2 * longest + 20, 3 * longest + 21):
        monkeypatch.setattr(answer_json, "_PIECE", piece)
        assert answer_json.parse(text.encode()) == document
        for cut in (text[:-1], text[: len(text) // 2], text + "x", text + "]", text + ",1]"):
            with pytest.raises(errors.AsteriskUnreachable, match="not JSON"):
                answer_json.parse(cut.encode())


@pytest.mark.parametrize("text", ["[1,,2]", "[,1]", "[1,]", "[1 2]", "[]1", "[1}", '["a]'])
def test_what_is_no_list_is_not_json(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_json, "_PIECE", 4)
    monkeypatch.setattr(answer_json, "_BYTES_AN_ENTRY", 1)
    with pytest.raises(errors.AsteriskUnreachable, match="not JSON"):
        answer_json.parse(text.encode() + b" " * 5)


def test_a_piece_that_ends_within_a_number_goes_on_in_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_json, "_SMALL", 10**9)
    monkeypatch.setattr(answer_json, "_BYTES_AN_ENTRY", 1)
    for piece in range(8, 30):
        monkeypatch.setattr(answer_json, "_PIECE", piece)
        assert answer_json.parse(b"[12345, 67890 ,12345,1e5, 12 , 345]") == [12345, 67890, 12345, 1e5, 12, 345]


def test_the_values_of_a_small_answer_are_not_counted() -> None:
    assert answer_json.parse(b"[" + b"[]," * 1000 + b"1]")[:2] == [[], []]
    with pytest.raises(errors.AsteriskUnreachable, match="too many values"):
        answer_json.parse(b"[" + b"[]," * 2000 + b"1]")


@pytest.mark.parametrize("text", [",".join(f"a{number}=1" for number in range(2000)), '\\",[{' * 2000, "\\\\," * 4000])
def test_what_stands_within_a_string_is_no_value(text: str) -> None:
    """As the arguments of Stasis() do in a channel's `app_data`."""
    document = {"id": "1", "dialplan": {"app_name": "Stasis", "app_data": text}}
    assert answer_json.parse(json.dumps(document).encode()) == document

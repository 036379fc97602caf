"""A chaos run is told on the terminal, kept as figures, and shown as tables and charts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from chaos import chart, growth_report, record, report
from chaos.faults import FAULTS
from chaos.record import MIXED, Entry
from tests.checks import checkout
from tests.support.soak_samples import MEBIBYTE, made

BEGAN = 1_800_000_000.0
KILLED, CUT = "worker killed", "event socket cut"


def call(at: float, wait: float, outcome: str = "connected", **details: Any) -> dict[str, Any]:
    connected_at = BEGAN + at + wait if outcome == "connected" else None
    return {
        "leg": "call-1",
        "app": "voiceai-a",
        "manner": "after seconds",
        "offered_at": BEGAN + at,
        "bridged_at": connected_at,
        "outcome": outcome,
        "reason": "",
        "wait_seconds": wait,
        **details,
    }


def fault(name: str, at: float, again: float | None, *, in_setup: int = 1, apps: list[str] | None = None) -> Any:
    return {
        "name": name,
        "target": "a target",
        "apps": apps,
        "at": BEGAN + at,
        "until": BEGAN + at + 2,
        "in_setup": in_setup,
        "served_again_seconds": again,
    }


def verdict(calls: list[dict[str, Any]], *faults: dict[str, Any]) -> dict[str, Any]:
    totals = dict.fromkeys(("connected", "abandoned", "lost", "unseen", "refused", "failed"), 0)
    totals |= dict.fromkeys(("rows", "runs", "dead_letters", "listened"), 0)
    return {
        "violations": [],
        "calls": calls,
        "faults": list(faults),
        "totals": totals | {"offered": len(calls)},
        "seeds": [7],
        "rate": 4.0,
        "asterisk": "22.10.1",
    }


def entry(name: str, calls: list[dict[str, Any]], *faults: dict[str, Any]) -> Entry:
    return record.entry(verdict(calls, *faults), name=name, commit="v0")


def row(text: str, start: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(start)]
    return [cell.strip() for cell in line.strip("| ").split("|")]


def test_a_terminal_shows_each_kind_of_fault_in_a_line() -> None:
    calls = [call(0, 1), call(5, 4), call(5, 30, "failed"), call(100, 90)]
    faults = [fault(name, 6, 3) for name in FAULTS]
    text = report.text(verdict(calls, *faults, fault(KILLED, 20, None)))
    assert max(map(len, text.splitlines())) <= 100
    (line,) = [line for line in text.splitlines() if line.startswith(KILLED)]
    # Two strikes, and never again a call after the second one.
    assert line.removeprefix(KILLED).split() == ["2", "2", "never", "4.0", "30.0", "30.0"]


@pytest.mark.parametrize(
    ("other", "counts"),
    [
        (call(5, 50), True),
        (call(5, 50, "failed"), True),
        (call(5, 50, app=None), True),
        # Offered within 30 s after it was mended.
        (call(41, 50), True),
        # Of another tenant than the one that the fault struck.
        (call(5, 50, app="voiceai-b"), False),
        # Over before the strike, or begun more than 30 s after it was mended.
        (call(0, 9.5), False),
        (call(42.5, 50), False),
        # Callers who did not mean to wait, and those whose Asterisk died.
        (call(5, 50, "abandoned", manner="at once"), False),
        (call(5, 50, "abandoned", manner="during set-up"), False),
        (call(5, 50, "lost"), False),
    ],
)
def test_the_waits_are_those_of_callers_whom_the_fault_concerned(other: dict[str, Any], counts: bool) -> None:
    found = entry(CUT, [call(9, 3), other], fault(CUT, 10, 1, apps=["voiceai-a"]))["waits"]
    assert (found["callers"], found["worst"]) == ((2, 50) if counts else (1, 3))


def test_a_table_has_a_row_for_each_kind_in_the_order_of_the_faults() -> None:
    calls = [call(6, wait / 10) for wait in range(1, 101)] + [
        call(5, 2, "abandoned"),
        call(5, 2, "lost", reason="died"),
    ]
    faults = [fault(KILLED, 6, 1), fault(KILLED, 16, 9, in_setup=3), fault(KILLED, 26, 2, in_setup=0)]
    entries = [entry(CUT, calls, fault(CUT, 6, 1)), entry(MIXED, calls, *faults), entry(KILLED, calls, *faults)]
    table = report.faults_table(entries)
    assert table.index(KILLED) < table.index(CUT)
    assert row(table, f"| {KILLED}") == [
        KILLED, "3, 2", "4", "102", "100", "1", "1", "0", "0", "0", "2.0, 9.0", "5.0, 9.5, 10.0", "0",
    ]  # fmt: skip
    assert "Played: 2027-01-15, commit `v0`, Asterisk 22.10.1, seed 7, 4 calls/s." in table
    assert MIXED not in table
    assert row(report.reasons_table(entries), f"| {KILLED}")[:2] == [KILLED, "died (1)"]
    assert row(report.mixed_table(entries), "| Faults")[1] == "3 of 1 kinds; 1 kinds met a call in set-up"


def test_a_reason_is_told_without_the_ids_of_its_call() -> None:
    reasons = ["not in the bridge: aip-0123-m1", "not in the bridge: aip-4567-m2", "received 18.9 s late"]
    found = entry(KILLED, [call(5, 1, "failed", reason=reason) for reason in reasons], fault(KILLED, 6, 1))
    assert found["reasons"] == {"failed": {"not in the bridge": 2, "received late": 1}}


def test_a_run_takes_the_place_of_the_one_of_its_name(tmp_path: Path) -> None:
    path = tmp_path / "chaos.json"
    assert record.read(path) == []
    for name, wait in ((KILLED, 1), (CUT, 2), (KILLED, 3)):
        record.save(entry(name, [call(5, wait)], fault(name, 6, 1)), path)
    assert {one["name"]: one["waits"]["worst"] for one in record.read(path)} == {KILLED: 3, CUT: 2}
    assert len(path.read_text().splitlines()) == 4


def test_runs_are_drawn_as_small_png_files(tmp_path: Path) -> None:
    calls = [call(second / 4, 1 + second % 7) for second in range(600) if not 200 < second < 260]
    strikes = [fault(name, 5 + 3 * number, None if number % 9 == 0 else 2) for number, name in enumerate(FAULTS)]
    single = [entry(name, calls, fault(name, 6, 1), fault(name, 16, None)) for name in FAULTS]
    unserved = entry(KILLED, [call(5, 2, "lost")], fault(KILLED, 90, None))
    chart.draw([entry(MIXED, calls, *strikes), *single, unserved], tmp_path)
    for name in (chart.MIXED_CHART, chart.FAULTS_CHART):
        drawn = (tmp_path / name).read_bytes()
        assert drawn.startswith(b"\x89PNG")
        assert len(drawn) < 250_000


def test_a_soak_is_told_by_its_processes_servers_and_tables(tmp_path: Path) -> None:
    def growing(sample: Any, minute: float) -> None:
        sample["processes"]["worker.1"]["resident_bytes"] = int((60 + minute) * MEBIBYTE)
        sample["processes"]["worker.2"]["pid"] = 200 + int(minute / 4)
        sample["postgres"]["tables"]["ari.calls"]["table_bytes"] = int(minute * MEBIBYTE)
        if minute < 5:
            sample["redis"] = None

    found = growth_report.soak(
        made(growing), verdict([call(5, 1)], fault(KILLED, 6, 1)), grown=["worker.1 grows"], commit="v0"
    )
    growth_report.save(found, tmp_path / "soak.json")
    read = growth_report.read(tmp_path / "soak.json")
    assert read == found
    text = growth_report.tables(read)
    assert "Faults: worker killed (1). Violations: worker.1 grows." in text
    assert row(text, "| `worker.1`")[1:4] == ["1", "65, 90", "+10.00 of 0.78"]
    # No life of it was longer than the warm-up.
    assert row(text, "| `worker.2`")[1::2][:2] == ["8", "-"]
    assert row(text, "| `ari.calls`")[3] == "5, 30"
    assert row(text, "| Redis keys")[1:] == ["30, 30", "30", "-"]
    assert growth_report.tables(growth_report.read(tmp_path / "none.json")) == report.NOTHING


def test_the_page_explains_every_violation() -> None:
    kinds = set(
        re.findall(r'(?:kind=|_of_row\(|_of_leg\(evidence, )"([a-z-]+)"', checkout.text("chaos/judge/checks.py"))
    )
    table = checkout.text("docs/chaos.md").partition("| Violation |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`([a-z]+-[a-z-]+)`", table)) == kinds

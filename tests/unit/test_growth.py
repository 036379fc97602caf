"""What counts as growth in the samples of a long run: made samples, each with one thing wrong."""

from __future__ import annotations

import pytest

from chaos import growth
from chaos.soak import Sample
from tests.support.soak_samples import MEBIBYTE, Change, made


def restart(sample: Sample, name: str, minute: float, *, every: float) -> None:
    sample["processes"][name]["pid"] += 1000 * int(minute / every)


def test_a_steady_run_has_no_violation() -> None:
    assert growth.judge(made()) == []


def leaking(sample: Sample, minute: float) -> None:
    # 1.5 % in 10 minutes: less than the noise of one sample.
    sample["processes"]["worker.1"]["resident_bytes"] += int(60 * MEBIBYTE * 0.015 * minute / 10)


def leaking_although_killed(sample: Sample, minute: float) -> None:
    """After each kill it begins again, and so never has much."""
    restart(sample, "worker.1", minute, every=10)
    sample["processes"]["worker.1"]["resident_bytes"] += int(60 * MEBIBYTE * 0.04 * (minute % 10) / 10)


def leaking_files(sample: Sample, minute: float) -> None:
    sample["processes"]["listener.1"]["files"] += int(minute / 3)


def leaking_threads(sample: Sample, minute: float) -> None:
    sample["processes"]["listener.1"]["threads"] += int(minute / 3)


def leaking_redis(sample: Sample, minute: float) -> None:
    assert sample["redis"]
    sample["redis"]["memory_bytes"] += int(2 * MEBIBYTE * 0.02 * minute / 10)


def leaking_connections(sample: Sample, minute: float) -> None:
    assert sample["postgres"]
    sample["postgres"]["connections"] += int(minute / 3)


def dead_tuples_pile_up(sample: Sample, minute: float) -> None:
    assert sample["postgres"]
    sample["postgres"]["tables"]["ari.calls"]["dead"] = int(minute * 1800)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (leaking, "worker.1: resident_bytes grows by"),
        (leaking_although_killed, "worker.1: resident_bytes grows by"),
        (leaking_files, "listener.1: files grows by"),
        (leaking_threads, "listener.1: threads grows by"),
        (leaking_redis, "Redis: memory_bytes grows by"),
        (leaking_connections, "Postgres: connections grows by"),
        (dead_tuples_pile_up, "ari.calls: "),
    ],
)
def test_what_grows_is_named(change: Change, expected: str) -> None:
    (violation,) = growth.judge(made(change))
    assert violation.startswith(expected)


def test_the_first_minutes_of_each_life_may_grow() -> None:
    def warming_up(sample: Sample, minute: float) -> None:
        restart(sample, "worker.1", minute, every=10)
        for name, process in sample["processes"].items():
            age = minute % 10 if name == "worker.1" else minute
            process["resident_bytes"] -= int(20 * MEBIBYTE * max(0.0, 1 - age / 5))
        if minute < 5 and sample["postgres"]:
            sample["postgres"]["tables"]["ari.calls"]["dead"] = 50_000

    assert growth.judge(made(warming_up)) == []


def test_a_peak_is_no_growth() -> None:
    def peaks(sample: Sample, minute: float) -> None:
        if minute > 28:
            sample["processes"]["worker.1"]["resident_bytes"] += 30 * MEBIBYTE
            sample["processes"]["worker.1"]["files"] += 100

    assert growth.judge(made(peaks)) == []


def test_a_redis_that_is_killed_again_and_again_is_not_one_that_grows() -> None:
    def killed(sample: Sample, minute: float) -> None:
        assert sample["redis"]
        sample["redis"]["run_id"] = f"{minute // 10}"
        sample["redis"]["memory_bytes"] += int(minute // 10) * MEBIBYTE

    assert growth.judge(made(killed)) == []


def test_a_server_that_did_not_answer_is_left_out() -> None:
    def silent(sample: Sample, minute: float) -> None:
        if 12 < minute < 13:
            sample["redis"] = sample["postgres"] = None
            del sample["processes"]["worker.1"]

    assert growth.judge(made(silent)) == []


def test_a_postgres_that_forgot_its_counts_in_a_crash_is_no_violation() -> None:
    def crashed(sample: Sample, minute: float) -> None:
        if minute > 15 and sample["postgres"]:
            sample["postgres"]["tables"]["ari.calls"] |= {"changed": int((minute - 15) * 1800), "dead": 90, "live": 0}

    assert growth.judge(made(crashed)) == []


def test_a_kind_of_process_that_is_always_killed_too_early_is_named() -> None:
    def killed(*names: str) -> Change:
        def change(sample: Sample, minute: float) -> None:
            for name in names:
                restart(sample, name, minute, every=4)

        return change

    assert growth.judge(made(killed("worker.1"))) == [], "the other worker is enough"
    found = growth.judge(made(killed("worker.1", "worker.2")))
    assert [text.partition(" is not known")[0] for text in found] == [
        "worker: resident_bytes",
        "worker: files",
        "worker: threads",
    ]


def test_a_hole_in_the_samples_is_a_violation() -> None:
    samples = made()
    assert growth.judge(samples[:60] + samples[70:]) == ["no sample for 110 s"]


def test_a_run_that_is_too_short_proves_nothing() -> None:
    assert len(growth.judge(made(minutes=6))) > 3


def test_no_samples_prove_nothing() -> None:
    assert growth.judge([]) != []


def test_each_quantity_that_is_level_has_a_figure() -> None:
    found = {(one.name, one.quantity): one for one in growth.growths(made(leaking))}
    assert len(found) == 3 * 3 + 2
    leak = found["worker.1", "resident_bytes"]
    assert leak.per_10_minutes == pytest.approx(0.015 * 60 * MEBIBYTE, rel=0.3)
    assert leak.most == pytest.approx(0.01 * leak.median)

"""What the platform's API hears of a transfer, on a real Redis: exactly its names, and what it keeps."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from shared import errors
from shared.platform import dograh
from shared.platform.dograh.platform_redis import PlatformRedis
from shared.platform.dograh.transfer_events import TransferEvents
from shared.platform.ports import Transfer
from shared.storage import database
from tests import dograh_tables
from tests.support import platform_api
from tests.support.platform_api import PlatformApi

pytestmark = pytest.mark.services

TRANSFER = Transfer(transfer_id="t1", caller_id="1762.1", workflow_run_id=7, conference_name="transfer-1762.1")


@pytest.fixture
def api(redis_url: str) -> Iterator[PlatformApi]:
    with platform_api.connected(redis_url) as client:
        yield PlatformApi(client=client)


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    with dograh_tables.filled(database_url) as made:
        yield made


@pytest.fixture
def transfer_events(redis_url: str, db: database.Database) -> Iterator[TransferEvents]:
    asked = PlatformRedis(redis_url, seconds=2.0)
    yield TransferEvents(asked, watch=dograh.Watch(db, quiet=True))
    asked.close()


def test_a_transfer_is_read_as_the_api_writes_it(api: PlatformApi, transfer_events: TransferEvents) -> None:
    assert (transfer_events.transfer("t1"), transfer_events.transfer_to("d")) == (None, None)
    api.begin_transfer("t1", "1762.1", 7, destination_id=None)
    assert (transfer_events.transfer("t1"), transfer_events.transfer_to("d")) == (TRANSFER, None)
    api.begin_transfer("t1", "1762.1", 7, destination_id="d")
    assert transfer_events.transfer_to("d") == TRANSFER


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"original_call_sid": 7}'])
def test_what_names_no_caller_is_no_transfer(api: PlatformApi, transfer_events: TransferEvents, text: str) -> None:
    api.client.set("transfer:context:t1", text)
    assert transfer_events.transfer("t1") is None
    assert transfer_events.transfer("t" * 1000) is None


def test_the_answer_is_told_with_exactly_the_api_s_names(api: PlatformApi, transfer_events: TransferEvents) -> None:
    assert not transfer_events.answered(TRANSFER, "d"), "none listens yet"
    with api.listening("t1") as heard:
        assert transfer_events.answered(TRANSFER, "d")
        told = heard.first()
    assert abs(told.pop("timestamp") - time.time()) < 5
    assert told == {
        "type": "destination_answered", "transfer_id": "t1", "original_call_sid": "1762.1", "transfer_call_sid": "d",
        "target_number": None, "conference_name": "transfer-1762.1", "message": "Transfer destination answered",
        "status": "success", "action": "destination_answered", "reason": None, "end_call": False,
    }  # fmt: skip
    assert api.client.get("ari:transfer_channel:d") == "t1"
    assert api.client.ttl("ari:transfer_channel:d") == pytest.approx(300, abs=5)


def test_the_failure_is_told_with_exactly_the_api_s_names(api: PlatformApi, transfer_events: TransferEvents) -> None:
    with api.listening("t1") as heard:
        assert transfer_events.failed(TRANSFER, "d", "The call was not answered.")
        told = heard.first()
    told.pop("timestamp")
    assert told == {
        "type": "transfer_failed", "transfer_id": "t1", "original_call_sid": "1762.1", "transfer_call_sid": "d",
        "target_number": None, "conference_name": "transfer-1762.1",
        "message": "Transfer failed: The call was not answered.", "status": "failed", "action": "transfer_failed",
        "reason": "The call was not answered.", "end_call": False,
    }  # fmt: skip


def test_a_tool_that_listens_to_everything_is_not_the_api(api: PlatformApi, transfer_events: TransferEvents) -> None:
    """Else the platform would be told no more before it listens, and its caller waits until its own time is up."""
    with api.client.pubsub() as tool:
        tool.psubscribe("*")
        tool.get_message(timeout=5)
        assert not transfer_events.failed(TRANSFER, "d", "The call was not answered.")
        assert not transfer_events.answered(TRANSFER, "d")
        with api.listening("t1"):
            assert transfer_events.failed(TRANSFER, "d", "The call was not answered.")


def test_what_is_kept_of_a_destination_is_removed(api: PlatformApi, transfer_events: TransferEvents) -> None:
    api.begin_transfer("t1", "1762.1", 7, destination_id="d")
    api.client.set("ari:channel:d", "7")
    transfer_events.forget("d")
    assert set(api.client.keys("*")) == {"transfer:context:t1", "transfer:by_call_sid:1762.1"}


@pytest.mark.parametrize(
    ("layout", "without_redis", "with_redis"),
    [
        ("stand-alone", (False, "PLATFORM_REDIS_URL is not set"), (True, None)),
        ("2026-02", (True, "2026-02 makes no transfers"), (True, "2026-02 makes no transfers")),
        ("newest", (True, "PLATFORM_REDIS_URL is not set"), (True, None)),
    ],
    indirect=["layout"],
)
def test_where_there_are_transfers_follows_from_the_layout_and_the_redis(
    db: database.Database,
    transfer_events: TransferEvents,
    without_redis: tuple[bool, str | None],
    with_redis: tuple[bool, str | None],
) -> None:
    alone = TransferEvents(None, watch=dograh.Watch(db, quiet=True))
    for events, (is_served, refusal) in ((alone, without_redis), (transfer_events, with_redis)):
        assert events.is_served() is is_served
        assert (refusal or "") in (events.refusal() or "")
        assert (refusal is None) is (events.refusal() is None)
    with pytest.raises(errors.PlatformRedisAway):
        alone.transfer("t1")

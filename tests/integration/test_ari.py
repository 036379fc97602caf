"""What Ari asks an Asterisk for, and what it makes of the answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from urllib.parse import unquote

import pytest

from shared import errors
from shared.asterisk import ari, ari_requests
from shared.asterisk.rest import Request
from tests import stub_asterisk
from tests.stub_asterisk import CHANNEL, Answer, RequestBudget, Stub, answered, asterisk
from tests.support.odd_ids import ODD_IDS


@pytest.fixture
def stub() -> Iterator[Stub]:
    with stub_asterisk.serving() as made:
        yield made


@pytest.fixture
def budget() -> RequestBudget:
    return RequestBudget()


@pytest.fixture
def client(stub: Stub, budget: RequestBudget) -> Iterator[ari.Ari]:
    with asterisk(stub.url) as made:
        yield ari.Ari(made, budget)


# ── what is asked ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_channel_is_read(client: ari.Ari, stub: Stub, budget: RequestBudget) -> None:
    stub.answer = answered(200, CHANNEL)
    channel = client.channel("1.1")
    assert channel is not None
    assert (channel.id, channel.stasis_app, channel.caller_number) == ("1.1", "voiceai", "+49151")
    assert stub.lines == ["GET /ari/channels/1.1"]
    assert [(request.what, request.answer) for request in budget.requests] == [("GET /channels/1.1", "200")]
    assert budget.requests[0].took_ms > 0


def test_credentials_go_in_the_header_only(client: ari.Ari, stub: Stub) -> None:
    client.answer("1.1")
    assert stub.headers[0]["Authorization"] == "Basic dXNlcjpodW50ZXIyICYgIyAlICsgOiA9"
    assert "hunter2" not in stub.lines[0]


def test_a_path_prefix_is_kept(stub: Stub, budget: RequestBudget) -> None:
    with asterisk(f"{stub.url}/asterisk") as made:
        ari.Ari(made, budget).answer("1.1")
    assert stub.lines == ["POST /asterisk/ari/channels/1.1/answer"]


@pytest.mark.parametrize(
    ("channel_id", "segment"),
    [
        ("a/b", "a%2Fb"),
        ("a?b=c", "a%3Fb%3Dc"),
        ("a#b", "a%23b"),
        ("a%2Fb", "a%252Fb"),
        ("../../asterisk", "..%2F..%2Fasterisk"),
        ("a b\u00fc", "a%20b%C3%BC"),
        ("a;2", "a%3B2"),
        ("a\r\nX: y", "a%0D%0AX%3A%20y"),
    ],
)
def test_ids_chosen_by_others_stay_one_segment(client: ari.Ari, stub: Stub, channel_id: str, segment: str) -> None:
    client.answer(channel_id)
    assert stub.lines == [f"POST /ari/channels/{segment}/answer"]


@pytest.mark.parametrize(
    ("value", "quoted"),
    [("a-Z_0.9~", "a-Z_0.9~"), ("", ""), ("a&b=c", "a%26b%3Dc"), ("a b+c", "a%20b%2Bc"), ("\u00fc\n", "%C3%BC%0A"),
     ("safe\n", "safe%0A"), ("\u0660", "%D9%A0")],
)  # fmt: skip
def test_values_chosen_by_others_stay_one_value(client: ari.Ari, stub: Stub, value: str, quoted: str) -> None:
    client.ask(ari_requests.set_variable("1.1", "AIP_REASON", value))
    assert stub.lines == [f"POST /ari/channels/1.1/variable?variable=AIP_REASON&value={quoted}"]


def test_a_media_leg_is_asked_for_as_the_platform_wants_it(client: ari.Ari, stub: Stub) -> None:
    stub.answer = answered(200, CHANNEL)
    parameters = {"workflow_id": "1", "token": "a)b,c&d%e\n"}
    client.ask(
        ari_requests.create_media("aip-1-m1", app="voiceai", client="media", parameters=parameters, args="a1b2c3d4")
    )
    assert stub.lines == [
        "POST /ari/channels/externalMedia?app=voiceai&external_host=media&format=ulaw&transport=websocket"
        "&encapsulation=none&connection_type=client&direction=both&channelId=aip-1-m1"
        # Once for the media URL, once more for this one.
        "&transport_data=v%28workflow_id%3D1%2Ctoken%3Da%2529b%252Cc%2526d%2525e%250A%29"
        # What its StasisStart brings back.
        "&data=a1b2c3d4"
    ]


def test_what_else_is_asked(client: ari.Ari, stub: Stub) -> None:
    client.ask(ari_requests.create_bridge("aip-1-b1"))
    client.ask(ari_requests.add_legs("aip-1-b1", ["1.1", "aip-1-m1"]))
    assert client.hang_up("1.1", 17)
    assert client.hang_up("1.1")
    assert client.remove_bridge("aip-1-b1")
    client.set_event_filter(["Dial", "StasisEnd"])
    assert stub.lines == [
        "POST /ari/bridges/aip-1-b1?type=mixing&name=aip-1-b1",
        "POST /ari/bridges/aip-1-b1/addChannel",
        "DELETE /ari/channels/1.1?reason_code=17",
        "DELETE /ari/channels/1.1",
        "DELETE /ari/bridges/aip-1-b1",
        "PUT /ari/applications/voiceai/eventFilter",
    ]
    assert json.loads(stub.bodies[1]) == {"channel": ["1.1", "aip-1-m1"]}
    assert json.loads(stub.bodies[-1]) == {"allowed": [{"type": "Dial"}, {"type": "StasisEnd"}]}


@pytest.mark.parametrize("channel_id", ODD_IDS)
def test_an_id_is_asked_for_and_compared_as_the_pbx_has_chosen_it(client: ari.Ari, stub: Stub, channel_id: str) -> None:
    client.ask(ari_requests.add_legs("b1", [channel_id, "m1"]))
    assert json.loads(stub.bodies[-1]) == {"channel": [channel_id, "m1"]}
    stub.answer = answered(200, {"id": "b1", "channels": [channel_id]})
    assert client.bridge("b1") == ari_requests.Bridge(id="b1", channels=frozenset({channel_id}))
    stub.answer = answered(200, {"channel_ids": [channel_id], "events_allowed": []})
    assert client.application() == ari.Application(channels=frozenset({channel_id}), allowed=frozenset())
    stub.answer = answered(200, CHANNEL | {"id": channel_id})
    assert (found := client.channel(channel_id)) is not None
    assert found.id == channel_id
    assert unquote(stub.lines[-1].rpartition("/")[2]) == channel_id


@pytest.mark.parametrize(
    "request_",
    [ari_requests.channel("1+1"), ari_requests.answer("1+1"), ari_requests.hang_up("1+1"),
     ari_requests.set_variable("1+1", "A", "b"), ari_requests.continue_in_dialplan("1+1")],
    ids=lambda request: request.what,
)  # fmt: skip
@pytest.mark.parametrize(
    ("application", "is_believed"),
    [
        (answered(200, {"channel_ids": ["1+1"]}), False),
        (answered(200, {"channel_ids": ["1 1", "2"]}), True),
        (answered(404, {"message": "Application not found"}), True),
        (answered(503, {}), False),
        (answered(400, {"message": "odd"}), False),
    ],
    ids=["listed", "not listed", "no app", "no answer", "refused"],
)
def test_a_404_for_a_channel_that_the_app_lists_is_not_believed(
    stub: Stub, budget: RequestBudget, request_: Request[object], application: Answer, *, is_believed: bool
) -> None:
    gone = answered(404, {"message": "Channel not found"})
    stub.answer = lambda handler: (application if "/applications/" in handler.path else gone)(handler)
    with asterisk(stub.url) as made:
        careful = ari.Ari(made, budget, doubts=lambda channel: channel == "1+1")
        result, other = careful.together(request_, ari_requests.hang_up("m1"))
    assert other is False
    assert isinstance(result, errors.AnswerDoubtful) is not is_believed
    assert len(stub.lines) == 3


@pytest.mark.parametrize(
    ("application", "more"),
    [
        (answered(200, {"channel_ids": ["2"]}), 0),
        (answered(404, {"message": "Application not found"}), 0),
        # The channel may have ended between the two answers.
        (answered(200, {"channel_ids": ["1+1"]}), 1),
        (answered(503, {}), 1),
    ],
    ids=["not listed", "no app", "listed", "no answer"],
)
def test_a_list_of_the_same_round_that_does_not_show_the_channel_settles_its_404(
    stub: Stub, budget: RequestBudget, application: Answer, more: int
) -> None:
    gone = answered(404, {"message": "Channel not found"})
    stub.answer = lambda handler: (application if "/applications/" in handler.path else gone)(handler)
    with asterisk(stub.url) as made:
        careful = ari.Ari(made, budget, doubts=lambda _channel: True)
        leg, _ = careful.together(*ari.place_requests("1+1", "voiceai"))
    assert isinstance(leg, errors.AnswerDoubtful) == bool(more)
    assert len(stub.lines) == 2 + more


def test_what_is_no_id_is_in_no_list(client: ari.Ari, stub: Stub) -> None:
    stub.answer = answered(200, {"id": "b1", "channels": ["1", "", None, 5, "a\x00b", "\ud800", "x" * 151]})
    assert client.bridge("b1") == ari_requests.Bridge(id="b1", channels=frozenset({"1"}))


def test_bridges_and_the_application_are_read(client: ari.Ari, stub: Stub) -> None:
    stub.answer = answered(200, [{"id": "b1", "channels": ["1", "2"]}, {"id": "b2"}])
    assert client.bridges() == [
        ari_requests.Bridge(id="b1", channels=frozenset({"1", "2"})),
        ari_requests.Bridge(id="b2", channels=frozenset()),
    ]
    stub.answer = answered(200, {"channel_ids": ["1"], "events_allowed": [{"type": "Dial"}]})
    assert client.application() == ari.Application(channels=frozenset({"1"}), allowed=frozenset({"Dial"}))


# ── what is answered ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_gone_is_an_outcome(client: ari.Ari, stub: Stub) -> None:
    stub.answer = answered(404, {"message": "Channel not found"})
    assert client.channel("1.1") is None
    assert not client.answer("1.1")
    assert not client.hang_up("1.1")
    stub.answer = answered(404, {"message": "Bridge not found"})
    assert client.bridge("b1") is None
    assert not client.remove_bridge("b1")
    stub.answer = answered(404, {"message": "Application not found"})
    assert client.application() is None


ASKS: dict[str, Callable[[ari.Ari], object]] = {
    "channel": lambda client: client.channel("1.1"),
    "bridge": lambda client: client.bridge("b1"),
    "application": lambda client: client.application(),
    "answer": lambda client: client.answer("1.1"),
    "hang_up": lambda client: client.hang_up("1.1"),
    "remove_bridge": lambda client: client.remove_bridge("b1"),
    "bridges": lambda client: client.bridges(),
}


@pytest.mark.parametrize(
    ("status", "document", "may_have_acted"),
    [
        (404, {"message": "Resource not found"}, False),
        (404, {"message": "Invalid Channel not found"}, False),
        (404, {"message": ["Channel not found"]}, False),
        (404, ["Channel not found"], False),
        (404, b"<html>Channel not found</html>", False),
        (404, None, False),
        (401, {"message": "Authentication required"}, False),
        (403, {"message": "Channel not found"}, False),
        (408, None, True),
        (429, None, False),
        (500, {"message": "Channel not found"}, True),
        (502, b"<html>", True),
        (503, None, True),
        (301, None, False),
        # Some proxy's own page: it proves nothing.
        (200, b"<html>Please log in</html>", True),
    ],
)
def test_nothing_else_is_an_outcome(
    client: ari.Ari, stub: Stub, status: int, document: object, *, may_have_acted: bool
) -> None:
    stub.answer = answered(status, document)
    for name, ask in ASKS.items():
        with pytest.raises(errors.AsteriskUnreachable) as caught:
            ask(client)
        assert caught.value.may_have_acted is may_have_acted, name


@pytest.mark.parametrize("document", [None, [], "Channel not found", 5, {}, {"id": 5}, b"null", b"[" * 10_000])
def test_an_answer_that_cannot_be_read_is_not_an_absence(client: ari.Ari, stub: Stub, document: object) -> None:
    stub.answer = answered(200, document)
    for ask in (client.channel, client.bridge):
        with pytest.raises(errors.AsteriskUnreachable):
            ask("1.1")


@pytest.mark.parametrize("names", [5, "1.1", {"a": 1}, True])
def test_lists_that_are_none_are_not_an_absence(client: ari.Ari, stub: Stub, names: object) -> None:
    stub.answer = answered(200, {"id": "b1", "channels": names, "channel_ids": names, "events_allowed": names})
    for ask in (client.application, lambda: client.bridge("b1")):
        with pytest.raises(errors.AsteriskUnreachable):
            ask()


def test_hostile_names_and_messages_can_be_logged_and_stored(
    client: ari.Ari, stub: Stub, budget: RequestBudget
) -> None:
    hostile = "a\x00\ud800\n\x1b[2J" + "x" * 10_000
    stub.answer = answered(200, {"id": hostile, "channels": [hostile], "channel_ids": [hostile]})
    bridge, application = client.bridge("b1"), client.application()
    stub.answer = answered(400, {"message": hostile})
    with pytest.raises(errors.AsteriskRefused) as caught:
        client.answer("1.1")
    assert bridge is not None
    assert application is not None
    said = [bridge.id, *bridge.channels, *application.channels, str(caught.value), budget.requests[-1].answer]
    for text in said:
        assert text.isprintable()
        assert len(text) < 300
        client_path = text.encode()
        assert client_path


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "Channel not found"),
        (409, "exists"),
        (412, "Channel not in Stasis"),
        (422, "Channel not in Stasis application"),
    ],
)
def test_a_refusal_is_told_in_asterisk_s_words(client: ari.Ari, stub: Stub, status: int, message: str) -> None:
    stub.answer = answered(status, {"message": message})
    with pytest.raises(errors.AsteriskRefused) as caught:
        client.ask(ari_requests.add_legs("b1", ["1.1"]))
    assert (caught.value.status, caught.value.message) == (status, message)


def test_a_bridge_that_was_made_before_is_made(client: ari.Ari, stub: Stub) -> None:
    stub.answer = answered(409, {"message": "Bridge with id 'b1' already exists"})
    client.ask(ari_requests.create_bridge("b1"))
    with pytest.raises(errors.AsteriskRefused):
        client.ask(ari_requests.create_media("m1", app="voiceai", client="media", parameters={}, args=""))


def test_no_redirect_is_followed(client: ari.Ari, stub: Stub) -> None:
    stub.answer = answered(302, None, headers={"Location": f"{stub.url}/elsewhere"})
    with pytest.raises(errors.AsteriskUnreachable, match="302"):
        client.channel("1.1")
    assert stub.lines == ["GET /ari/channels/1.1"]

"""REST requests about channels."""

import re

from simulator import channels, dialplan, errors, events, media, originates
from simulator.rest import NO_CONTENT, Answer, Request, Route
from simulator.switch import Switch

_PHONE_NUMBER = re.compile(r"[0-9*#+()., -]+")
_TALK_DETECT = "TALK_DETECT(set)"
#: What Asterisk leaves out of a phone number.
_SHRUNK = str.maketrans("", "", "(). -")


async def list_channels(switch: Switch, request: Request) -> Answer:
    return Answer(200, [channel.snapshot() for channel in switch.channels.values()])


async def get_channel(switch: Switch, request: Request) -> Answer:
    return Answer(200, switch.channel(request.names[0]).snapshot())


async def answer(switch: Switch, request: Request) -> Answer:
    switch.answer(_in_stasis(switch, request.names[0]))
    return NO_CONTENT


async def ring(switch: Switch, request: Request) -> Answer:
    _in_stasis(switch, request.names[0])
    return NO_CONTENT


async def continue_in_dialplan(switch: Switch, request: Request) -> Answer:
    channel = _in_stasis(switch, request.names[0])
    context, extension = request.text("context"), request.text("extension")
    dialplan.continue_in_dialplan(
        switch, channel, context or channel.context, extension or channel.extension, is_end=not context
    )
    return NO_CONTENT


async def set_variable(switch: Switch, request: Request) -> Answer:
    channel = switch.channel(request.names[0])
    name = request.required("variable")
    if name == _TALK_DETECT:
        # No variable but a function. Set again, it only changes its thresholds.
        channel.detects_talking = True
    else:
        channel.variables[name] = request.text("value")
    return NO_CONTENT


async def get_variable(switch: Switch, request: Request) -> Answer:
    channel, name = switch.channel(request.names[0]), request.required("variable")
    if name not in channel.variables:
        raise errors.Refusal(404, "Provided variable was not found")
    return Answer(200, {"value": channel.variables[name]})


async def hang_up(switch: Switch, request: Request) -> Answer:
    """Hangs up any channel, also outside of Stasis."""
    channel = switch.channel(request.names[0])
    cause = _cause(request)
    if switch.media.is_connecting(channel.id):
        # Asterisk first finishes connecting: the media server sees a socket that opens and closes.
        channel.doomed = True
        await switch.media.wait_connected(channel.id)
    switch.hang_up(channel, cause, soft=True)
    return NO_CONTENT


async def originate(switch: Switch, request: Request) -> Answer:
    app = request.text("app") or None
    if app is None and not request.text("extension"):
        raise errors.Refusal(400, "Application or extension must be specified")
    channel_id = (request.names[0] if request.names else request.text("channelId")) or None
    channel = originates.originate(
        switch,
        endpoint=request.required("endpoint"),
        app=app,
        args=request.items("appArgs"),
        caller=_number(request.text("callerId")),
        channel_id=channel_id,
        other_channel_id=request.text("otherChannelId") or None,
        timeout_seconds=request.number("timeout", 30.0),
        far=request.text("extension"),
    )
    return Answer(200, channel.snapshot())


async def create(switch: Switch, request: Request) -> Answer:
    """Makes a channel that is in Stasis before it is dialled."""
    channel = originates.create(
        switch,
        endpoint=request.required("endpoint"),
        app=request.required("app"),
        args=request.items("appArgs"),
        channel_id=request.text("channelId") or None,
    )
    return Answer(200, channel.snapshot())


async def dial(switch: Switch, request: Request) -> Answer:
    channel = switch.channel(request.names[0])
    if channel.state != "Down" or not channel.dialling:
        raise errors.Refusal(409, "Channel is not in the 'Down' state")
    originates.dial(switch, channel, timeout_seconds=request.number("timeout", 30.0))
    return NO_CONTENT


async def move(switch: Switch, request: Request) -> Answer:
    switch.move(switch.channel(request.names[0]), request.required("app"), request.items("appArgs"))
    return NO_CONTENT


async def external_media(switch: Switch, request: Request) -> Answer:
    """Answers before the media server has accepted, or was even contacted."""
    app = request.required("app")
    host = request.required("external_host")
    request.required("format")
    if request.text("transport", "udp") != "websocket":
        raise errors.Refusal(501, "Only websocket transport is simulated")
    if request.text("encapsulation", "rtp") != "none":
        raise errors.Refusal(400, "The encapsulation must be 'none' for websocket transport")
    if host not in switch.settings.media_urls:
        raise errors.Refusal(400, "external_host must be a valid websocket_client connection id.")
    number = switch.number()
    channel_id = request.text("channelId") or dialplan.unique_id(number)
    query = media.query_of(request.text("transport_data"))
    if switch.is_id_in_use(channel_id):
        # Not refused but fatal (measured): a second leg with an id, or with a prefix of a live channel's id, crashes
        # Asterisk.
        switch.crash()
        raise errors.Cut
    url = switch.settings.media_urls[host]
    if query:
        url += ("&" if "?" in url else "?") + query
    channel = channels.Channel(id=channel_id, name=f"WebSocket/{host}/{number:#x}", kind=channels.Kind.MEDIA)
    channel.made_for = app
    channel.run("AppDial2", "(Outgoing Line)")
    switch.add(channel)
    switch.applications.subscribe(app, channel_id)
    dialstring = f"{host}/{request.text('transport_data')}d(both)"
    switch.media.start(channel, url, app, request.items("data"), dialstring=dialstring)
    return Answer(200, channel.snapshot())


def _in_stasis(switch: Switch, channel_id: str) -> channels.Channel:
    channel = switch.channel(channel_id)
    if channel.app is None:
        raise errors.Refusal(409, "Channel not in Stasis application")
    return channel


def _cause(request: Request) -> int:
    reason, code = request.text("reason"), request.text("reason_code")
    if reason and code:
        raise errors.Refusal(400, "The reason and reason_code query parameters can't both be specified")
    if code:
        return int(code) if code.isdecimal() else 16
    if reason and reason not in events.CAUSE_BY_REASON:
        raise errors.Refusal(400, "Invalid reason for hangup reason provided")
    return events.CAUSE_BY_REASON[reason or "normal"]


def _number(caller_id: str) -> str:
    """Returns the number of `Name <number>`; without brackets a text that is no phone number is a name (measured)."""
    text = caller_id.partition("<")[2].rstrip("> ") if "<" in caller_id else caller_id
    if _PHONE_NUMBER.fullmatch(text):
        return text.translate(_SHRUNK)
    return text if "<" in caller_id else ""


ROUTES = [
    Route("GET", "/channels", list_channels),
    Route("POST", "/channels", originate),
    Route("POST", "/channels/create", create),
    Route("POST", "/channels/externalMedia", external_media),
    Route("GET", "/channels/*", get_channel),
    Route("POST", "/channels/*", originate),
    Route("DELETE", "/channels/*", hang_up),
    Route("POST", "/channels/*/answer", answer),
    Route("POST", "/channels/*/ring", ring),
    Route("POST", "/channels/*/continue", continue_in_dialplan),
    Route("POST", "/channels/*/dial", dial),
    Route("POST", "/channels/*/move", move),
    Route("GET", "/channels/*/variable", get_variable),
    Route("POST", "/channels/*/variable", set_variable),
]

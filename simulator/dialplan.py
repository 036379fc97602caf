"""The dialplan of an incoming call: it rings, enters Stasis, and retries or hangs up while no app is connected."""

import asyncio
import time

from simulator import audio, channels, control_requests, events, rest, switch

#: The recommended dialplan tries Stasis once more this often, waiting this long before each.
RETRIES = 50
RETRY_SECONDS = 0.1


#: Extension of the context `far` → the tone in Hz that its party says.
_TONES_HZ = {"tone": 1000}


def is_inbound(owner: switch.Switch, context: str) -> bool:
    """Returns True if calls to this context enter a Stasis app."""
    return (
        context.removesuffix("-plain") in {"inbound", *owner.settings.contexts} or context in owner.settings.broadcasts
    )


async def run_context(owner: switch.Switch, channel: channels.Channel) -> None:
    """Runs the context of incoming calls that the channel is in."""
    if channel.context in owner.settings.broadcasts:
        await _broadcast(owner, channel, owner.settings.broadcasts[channel.context])
        return
    context = channel.context.removesuffix("-plain")
    text = owner.settings.contexts.get(context, owner.settings.inbound_app).replace("${EXTEN}", channel.extension)
    app, *args = rest.separated(text)
    await run(owner, channel, app, args, retries=context == channel.context, app_data=text)


def behave(owner: switch.Switch, channel: channels.Channel, extension: str) -> None:
    """Makes the party of an answered channel behave as the extension of `far` says."""
    channel.tone_hz = _TONES_HZ.get(extension)
    if extension.startswith("play") and extension[4:].isdecimal():
        channel.tone_hz = round(int(extension[4:]) / audio.TONE_STEP_HZ) * audio.TONE_STEP_HZ
    channel.is_echo = extension == "echo"
    if extension == "reject":
        owner.hang_up(channel, 21, soft=False)
    else:
        channel.run("Wait", "3600")


async def run(
    owner: switch.Switch, channel: channels.Channel, app: str, args: list[str], *, retries: bool, app_data: str = ""
) -> None:
    """Lets a ringing call enter a Stasis app, or hangs it up.

    While no app is connected, a dialplan that retries lets the caller ring for five seconds; a plain one runs its
    Hangup() at once.
    """
    for attempt in range(RETRIES + 1):
        if not owner.is_alive(channel) or owner.enter_stasis(channel, app, args, app_data=app_data):
            return
        if not retries or attempt == RETRIES:
            break
        channel.run("Wait", str(RETRY_SECONDS))
        await asyncio.sleep(RETRY_SECONDS)
    owner.hang_up(channel, 16, soft=False)


async def _broadcast(owner: switch.Switch, channel: channels.Channel, text: str) -> None:
    """Offers a call to several apps, and hangs it up if none claims it in time."""
    text = text.replace("${EXTEN}", channel.extension)
    milliseconds, _, pattern = text.partition(",")
    channel.run("StasisBroadcast", text)
    offer = events.call_broadcast(channel.snapshot(), channel.caller_number, channel.extension)
    owner.applications.publish_matching(pattern, offer)
    winner = await owner.broadcasts.winner(channel.id, float(milliseconds) / 1000)
    if winner is None or not owner.enter_stasis(channel, winner, [], app_data=text, by="StasisBroadcast"):
        owner.hang_up(channel, 16, soft=False)


def dial(owner: switch.Switch, wanted: control_requests.Dial) -> channels.Channel:
    """Starts an incoming call: it rings and runs the dialplan.

    Raises:
        errors.Refusal: the channel id is in use.
    """
    number = owner.number()
    channel = channels.Channel(
        id=wanted.channel_id or unique_id(number),
        name=f"PJSIP/trunk-{number:08x}",
        kind=channels.Kind.CALLER,
        state="Up" if wanted.answered else "Ring",
        caller_number=wanted.caller,
        context="inbound",
        extension=wanted.called,
        protocol_id=f"{number:x}@127.0.0.1",
        tone_hz=wanted.tone_hz or owner.settings.caller_tone_hz,
    )
    owner.add(channel)
    owner.spawn(run(owner, channel, wanted.app, wanted.args, retries=wanted.dialplan == "recommended"))
    if wanted.hang_up_after is not None:
        owner.spawn(_hang_up_after(owner, channel, wanted.hang_up_after))
    return channel


def pick_up(owner: switch.Switch, channel: channels.Channel, wanted: control_requests.PickUp) -> channels.Channel:
    """Picks a ringing call up: a new channel replaces the one in Stasis.

    Raises:
        errors.Refusal: as `replace`.
    """
    number = owner.number()
    successor = channels.Channel(
        id=wanted.channel_id or unique_id(number),
        name=f"PJSIP/trunk-{number:08x}",
        kind=channels.Kind.CALLER,
        state="Up",
        caller_number=wanted.caller,
        context="pickup",
        tone_hz=owner.settings.caller_tone_hz,
    )
    successor.run("Pickup")
    owner.replace(channel, successor)
    return successor


def transfer(owner: switch.Switch, channel: channels.Channel, wanted: control_requests.Transfer) -> channels.Channel:
    """Transfers the others in the bridge of a channel: a leg to an extension takes its place, and is answered.

    Raises:
        errors.Refusal: as `Switch.transfer`.
    """
    number = owner.number()
    successor = channels.Channel(
        id=wanted.channel_id or unique_id(number),
        name=f"Local/{wanted.extension}@outbound-{number:08x};1",
        kind=channels.Kind.CALLER,
        context="outbound",
        extension=wanted.extension,
        tone_hz=owner.settings.caller_tone_hz,
    )
    owner.transfer(channel, successor)
    owner.answer(successor)
    return successor


def continue_in_dialplan(
    owner: switch.Switch, channel: channels.Channel, context: str, extension: str, *, is_end: bool
) -> None:
    """`continue` over REST: to a place in the dialplan, perhaps Stasis again, or to the Hangup() after Stasis."""
    leave_to_dialplan(owner, channel)
    if is_end:
        owner.hang_up(channel, 16, soft=False)
        return
    channel.context, channel.extension = context, extension
    if is_inbound(owner, context):
        owner.spawn(run_context(owner, channel))
    elif context == "far":
        owner.answer(channel)
        behave(owner, channel, extension)


def leave_to_dialplan(owner: switch.Switch, channel: channels.Channel) -> None:
    """`continue`: the channel leaves Stasis and waits in the dialplan, where the app does not see it."""
    owner.leave_stasis(channel)
    channel.run("Wait", "3600")


def unique_id(number: int) -> str:
    """Returns a channel id as Asterisk generates one: seconds, a dot, a number."""
    return f"{int(time.time())}.{number}"


async def _hang_up_after(owner: switch.Switch, channel: channels.Channel, seconds: float) -> None:
    await asyncio.sleep(seconds)
    owner.hang_up(channel, 16, soft=False)

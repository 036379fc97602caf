"""The dialplan an incoming call runs: ringing, Stasis, and what it does when no app is connected."""

import asyncio
import time

from simulator import channels, orders, switch

#: The recommended dialplan tries Stasis once more this often, waiting this long before each.
RETRIES = 50
RETRY_SECONDS = 0.1


async def run(owner: switch.Switch, channel: channels.Channel, app: str, args: list[str], *, is_patient: bool) -> None:
    """Brings a ringing call into a Stasis app, or hangs it up.

    A patient dialplan lets the caller ring for five seconds while no app is connected; a plain one goes on to its
    Hangup() at once.
    """
    for attempt in range(RETRIES + 1):
        if not owner.is_alive(channel) or owner.enter_stasis(channel, app, args):
            return
        if not is_patient or attempt == RETRIES:
            break
        channel.run("Wait", str(RETRY_SECONDS))
        await asyncio.sleep(RETRY_SECONDS)
    owner.hang_up(channel, 16, soft=False)


def dial(owner: switch.Switch, order: orders.Dial) -> channels.Channel:
    """A call comes in: it rings and runs the dialplan.

    Raises:
        errors.Refusal: the channel id is in use.
    """
    number = owner.number()
    channel = channels.Channel(
        id=order.channel_id or unique_id(number),
        name=f"PJSIP/trunk-{number:08x}",
        kind=channels.Kind.CALLER,
        state="Up" if order.answered else "Ring",
        caller_number=order.caller,
        context="inbound",
        extension=order.called,
        protocol_id=f"{number:x}@127.0.0.1",
        tone_hz=order.tone_hz or owner.settings.caller_tone_hz,
    )
    owner.add(channel)
    owner.spawn(run(owner, channel, order.app, order.args, is_patient=order.dialplan == "recommended"))
    if order.hang_up_after is not None:
        owner.spawn(_hang_up_after(owner, channel, order.hang_up_after))
    return channel


def leave_to_dialplan(owner: switch.Switch, channel: channels.Channel) -> None:
    """`continue`: the channel leaves Stasis and lives on, waiting, out of the app's sight."""
    owner.leave_stasis(channel)
    channel.run("Wait", "3600")


def unique_id(number: int) -> str:
    """A channel id as Asterisk makes one itself: seconds, a dot, a number."""
    return f"{int(time.time())}.{number}"


async def _hang_up_after(owner: switch.Switch, channel: channels.Channel, seconds: float) -> None:
    await asyncio.sleep(seconds)
    owner.hang_up(channel, 16, soft=False)

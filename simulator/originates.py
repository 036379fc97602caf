"""Calls that REST begins: Local channels into our own dialplan, and any other endpoint as a party that answers."""

import asyncio

from simulator import channels, dialplan, errors, events, switch

_BUSY = {"busy": ("BUSY", 0), "congestion": ("CONGESTION", 0)}


def originate(
    owner: switch.Switch,
    *,
    endpoint: str,
    app: str | None,
    args: list[str],
    caller: str,
    channel_id: str | None,
    other_channel_id: str | None,
    timeout_seconds: float,
) -> channels.Channel:
    """Begins a call. A Local channel has two halves: the near one, which is returned, and the far one in the dialplan.

    The far end does what its extension says: `busy`, `congestion`, `ring` (never answers), anything else answers.
    A far half in context `inbound` is an incoming call: it rings and enters the inbound app.

    Raises:
        errors.Refusal: an id is in use, or there is no endpoint.
    """
    technology, _, resource = endpoint.partition("/")
    if not technology or not resource:
        raise errors.Refusal(400, "Invalid endpoint specified")
    extension, _, context = resource.partition("@")
    number = owner.number()
    near_id = channel_id or dialplan.unique_id(number)
    far_id = other_channel_id or f"{near_id};2"
    if near_id in owner.channels or (technology == "Local" and far_id in owner.channels):
        raise errors.Refusal(409, "Channel with given unique ID already exists")
    name = f"{endpoint}-{number:08x}"
    near = channels.Channel(
        id=near_id,
        name=f"{name};1" if technology == "Local" else name,
        kind=channels.Kind.ORIGINATED,
        caller_number=caller,
        tone_hz=owner.settings.caller_tone_hz,
    )
    near.run("AppDial2", "(Outgoing Line)")
    owner.add(near)
    if technology == "Local":
        is_inbound = context == "inbound"
        far = channels.Channel(
            id=far_id,
            name=f"{name};2",
            kind=channels.Kind.CALLER if is_inbound else channels.Kind.ORIGINATED,
            state="Ring",
            caller_number=caller,
            context=context or "default",
            extension=extension,
            peer_id=near.id,
            tone_hz=owner.settings.caller_tone_hz,
        )
        near.peer_id = far.id
        owner.add(far)
        if is_inbound:
            far_run = dialplan.run(owner, far, owner.settings.inbound_app, [], is_patient=True)
            owner.spawn(far_run)
    if app is not None:
        for channel in (near, owner.channels.get(near.peer_id or "")):
            if channel is not None:
                owner.applications.subscribe(app, channel.id)
        owner.spawn(_dial(owner, near, app=app, args=args, extension=extension, timeout_seconds=timeout_seconds))
    return near


async def _dial(
    owner: switch.Switch,
    near: channels.Channel,
    *,
    app: str,
    args: list[str],
    extension: str,
    timeout_seconds: float,
) -> None:
    def report(status: str) -> None:
        owner.applications.publish(near.id, events.dial(near.snapshot(), status))

    report("")
    await asyncio.sleep(owner.settings.answer_after_seconds)
    if extension in _BUSY:
        status, cause = _BUSY[extension]
        report(status)
        owner.destroy(near, cause)
        return
    near.state = "Ringing"
    report("RINGING")
    if extension == "ring":
        await asyncio.sleep(timeout_seconds)
        if owner.is_alive(near):
            report("NOANSWER")
            owner.destroy(near, 19)
        return
    if not owner.is_alive(near):
        return
    far = owner.channels.get(near.peer_id or "")
    if far is not None:
        owner.answer(far)
    report("ANSWER")
    owner.answer(near)
    if not owner.enter_stasis(near, app, args):
        owner.hang_up(near, 16, soft=False)

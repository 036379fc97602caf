"""Originated calls: Local channels into the simulated dialplan, and any other endpoint as a party that answers."""

import asyncio

from simulator import channels, dialplan, errors, events, switch

#: Extensions that do not answer: dialstatus and cause.
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
    far: str = "",
) -> channels.Channel:
    """Starts a call. A Local channel has two halves: the near one, which is returned, and the far one in the dialplan.

    The extension decides what the far end does: `busy`, `congestion`, `reject`, `ring` (never answers); any other one
    answers. A far half in a context of incoming calls rings and enters that context's app; once it is answered, `far`
    decides what the near half does: `wait`, `tone`, `playHERTZ`, `echo`, `reject`.

    Raises:
        errors.Refusal: an id is in use, or there is no endpoint.
    """
    technology, _, resource = endpoint.partition("/")
    if not technology or not resource:
        raise errors.Refusal(400, "Invalid endpoint specified")
    number = owner.number()
    near_id = channel_id or dialplan.unique_id(number)
    is_local = technology == "Local"
    far_id = other_channel_id or f"{near_id};2"
    if owner.is_id_in_use(near_id) or (is_local and owner.is_id_in_use(far_id)):
        raise errors.Refusal(409, "Channel with given unique ID already exists")
    name = f"{endpoint}-{number:08x}"
    near = channels.Channel(
        id=near_id,
        name=f"{name};1" if is_local else name,
        kind=channels.Kind.ORIGINATED,
        caller_number=caller,
        tone_hz=owner.settings.caller_tone_hz,
        dialling=resource if app is not None else "",
    )
    near.run("AppDial2", "(Outgoing Line)")
    owner.add(near)
    other = _far_half(owner, near, far_id, endpoint=endpoint, does=far) if is_local else None
    if app is not None:
        for channel in (near, other):
            if channel is not None:
                channel.made_for = app
                owner.applications.subscribe(app, channel.id)
        owner.spawn(_dial(owner, near, other, app=app, args=args, timeout_seconds=timeout_seconds))
    return near


def create(
    owner: switch.Switch, *, endpoint: str, app: str, args: list[str], channel_id: str | None
) -> channels.Channel:
    """Makes a channel that is `Down` and in Stasis, and is dialled later, or never.

    Raises:
        errors.Refusal: the id is in use, or there is no endpoint.
    """
    technology, _, resource = endpoint.partition("/")
    if not technology or not resource:
        raise errors.Refusal(400, "Invalid endpoint specified")
    number = owner.number()
    name = f"{endpoint}-{number:08x}"
    made = channels.Channel(
        id=channel_id or dialplan.unique_id(number),
        name=f"{name};1" if technology == "Local" else name,
        kind=channels.Kind.ORIGINATED,
        tone_hz=owner.settings.caller_tone_hz,
        dialling=resource,
    )
    made.made_for = app
    owner.add(made)
    if not owner.enter_stasis(made, app, args):
        owner.destroy(made, 16)
    return made


def dial(owner: switch.Switch, made: channels.Channel, *, timeout_seconds: float) -> None:
    """Dials a channel that `create` has made."""
    endpoint = made.name.removesuffix(";1").rpartition("-")[0]
    is_local = made.name.endswith(";1")
    far = _far_half(owner, made, f"{made.id};2", endpoint=endpoint, does="") if is_local else None
    owner.spawn(_dial(owner, made, far, app=None, args=[], timeout_seconds=timeout_seconds))


def _far_half(
    owner: switch.Switch, near: channels.Channel, far_id: str, *, endpoint: str, does: str
) -> channels.Channel:
    extension, _, context = endpoint.partition("/")[2].partition("@")
    is_inbound = dialplan.is_inbound(owner, context)
    far = channels.Channel(
        id=far_id,
        name=f"{near.name[:-2]};2",
        kind=channels.Kind.CALLER if is_inbound else channels.Kind.ORIGINATED,
        state="Ring",
        caller_number=near.caller_number,
        context=context or "default",
        extension=extension,
        peer_id=near.id,
        tone_hz=owner.settings.caller_tone_hz,
    )
    near.peer_id = far.id
    owner.add(far)
    if is_inbound:
        if does:
            far.on_answer = lambda: _answered(owner, near, far, does)
        owner.spawn(dialplan.run_context(owner, far))
    return far


def _answered(owner: switch.Switch, near: channels.Channel, far: channels.Channel, does: str) -> None:
    """Answers the near half, at which the caller is, as the app has answered the far half."""
    near.state = "Up"
    dialplan.behave(owner, near, does)
    far.tone_hz, far.is_echo = near.tone_hz, near.is_echo


async def _dial(
    owner: switch.Switch,
    near: channels.Channel,
    far: channels.Channel | None,
    *,
    app: str | None,
    args: list[str],
    timeout_seconds: float,
) -> None:
    dialstring = near.dialling
    extension = dialstring.partition("@")[0]

    def report(status: str) -> None:
        owner.applications.publish(near.id, events.dial(near.snapshot(), status, dialstring))

    report("")
    await asyncio.sleep(owner.settings.answer_after_seconds)
    if not owner.is_alive(near):
        return
    if extension in _BUSY:
        status, cause = _BUSY[extension]
        report(status)
        owner.destroy(near, cause)
        return
    if extension == "reject":
        owner.hang_up(near, 21, soft=False)
        return
    is_inbound = far is not None and dialplan.is_inbound(owner, far.context)
    if extension == "ring" or far is None or is_inbound:
        near.state = "Ringing"
        owner.applications.publish(near.id, events.state_change(near.snapshot()))
        report("RINGING")
    if extension == "ring" or is_inbound:
        if not await _is_answered(owner, near, far, timeout_seconds):
            # This end has no Dial event (measured); an originate that is deleted has one.
            owner.destroy(near, 19)
            return
    elif far is not None:
        owner.answer(far)
    if not owner.is_alive(near):
        return
    near.dialling = ""
    owner.answer(near)
    report("ANSWER")
    if app is not None and not owner.enter_stasis(near, app, args):
        owner.hang_up(near, 16, soft=False)


async def _is_answered(
    owner: switch.Switch, near: channels.Channel, far: channels.Channel | None, timeout_seconds: float
) -> bool:
    answered = asyncio.Event()
    if far is not None:
        far.on_answer = answered.set
    try:
        async with asyncio.timeout(timeout_seconds):
            await answered.wait()
    except TimeoutError:
        return False
    return owner.is_alive(near)

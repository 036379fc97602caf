"""REST requests about events: a client's own event, and the claim of a call that is offered to several apps."""

from simulator import events
from simulator.rest import NO_CONTENT, Answer, Request, Route
from simulator.switch import Switch


async def send_user_event(switch: Switch, request: Request) -> Answer:
    """Sends an event of the client's own to an app."""
    application = switch.applications.get(request.required("application"))
    name, variables = request.names[0], request.body.get("variables") if isinstance(request.body, dict) else None
    given = variables if isinstance(variables, dict) else {}
    switch.applications.publish_to(application.name, events.user_event(name, given))
    return NO_CONTENT


async def claim(switch: Switch, request: Request) -> Answer:
    switch.broadcasts.claim(request.required("channelId"), request.required("application"))
    return NO_CONTENT


ROUTES = [
    Route("POST", "/events/user/*", send_user_event),
    Route("POST", "/events/claim", claim),
]

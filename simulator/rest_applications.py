"""REST requests about Stasis apps."""

from simulator.rest import Answer, Request, Route
from simulator.switch import Switch


async def list_applications(switch: Switch, request: Request) -> Answer:
    return Answer(200, switch.applications.snapshots())


async def get_application(switch: Switch, request: Request) -> Answer:
    return Answer(200, switch.applications.get(request.names[0]).snapshot())


async def set_event_filter(switch: Switch, request: Request) -> Answer:
    application = switch.applications.get(request.names[0])
    application.filter.change(request.body)
    return Answer(200, application.snapshot())


ROUTES = [
    Route("GET", "/applications", list_applications),
    Route("GET", "/applications/*", get_application),
    Route("PUT", "/applications/*/eventFilter", set_event_filter),
]

"""REST requests about Stasis apps, and about Asterisk itself."""

from simulator import events
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


async def ping(switch: Switch, request: Request) -> Answer:
    return Answer(
        200,
        {"ping": "pong", "timestamp": events.timestamp(), "asterisk_id": switch.settings.asterisk_id},
    )


async def info(switch: Switch, request: Request) -> Answer:
    return Answer(
        200,
        {
            "build": {"os": "Linux", "kernel": "simulated", "machine": "x86_64", "options": "", "date": "", "user": ""},
            "system": {"version": switch.settings.version, "entity_id": switch.settings.asterisk_id},
            "config": {"name": "", "default_language": "en"},
            "status": {"startup_time": events.timestamp(), "last_reload_time": events.timestamp()},
        },
    )


ROUTES = [
    Route("GET", "/applications", list_applications),
    Route("GET", "/applications/*", get_application),
    Route("PUT", "/applications/*/eventFilter", set_event_filter),
    Route("GET", "/asterisk/ping", ping),
    Route("GET", "/asterisk/info", info),
]

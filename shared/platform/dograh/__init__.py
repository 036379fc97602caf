"""The platform Dograh: the adapter of `shared.platform.ports`. Nothing else knows its tables and JSON.

`Configurations` are the tenants' Asterisks, `Accounts` the organizations and users, `Routes` the workflow that serves a
call, `Runs` the workflow runs, `Outbox` tells the platform of those that we have ended, `MediaUrl` the voice agent's
URL. `Slots` counts calls in the platform's Redis, `TransferEvents` tells its API there of transfers. `layouts` tells
which layout the tables have, and `rules` what differs between them (`february`, `newest`). The tables are the
platform's: their schema is never altered, and only two kinds of rows are locked, a run that is updated and a
configuration that is removed.
"""

from shared.platform.dograh.accounts import Accounts, CallLimits
from shared.platform.dograh.configurations import ConfigurationRow, Configurations
from shared.platform.dograh.layouts import Watch
from shared.platform.dograh.media_refusals import MediaRefusals
from shared.platform.dograh.media_url import MediaUrl
from shared.platform.dograh.outbox import Outbox
from shared.platform.dograh.platform_redis import PlatformRedis
from shared.platform.dograh.routes import Routes
from shared.platform.dograh.runs import Runs
from shared.platform.dograh.slots import Slots
from shared.platform.dograh.transfer_events import TransferEvents

__all__ = [
    "Accounts",
    "CallLimits",
    "ConfigurationRow",
    "Configurations",
    "MediaRefusals",
    "MediaUrl",
    "Outbox",
    "PlatformRedis",
    "Routes",
    "Runs",
    "Slots",
    "TransferEvents",
    "Watch",
]

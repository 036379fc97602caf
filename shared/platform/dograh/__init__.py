"""The platform Dograh, layout 2026-02: the adapter of `shared.platform.ports`. Nothing else knows its tables and JSON.

`Configurations` are the tenants' Asterisks, `Accounts` the organizations and users, `Routes` the workflow that serves a
call, `Runs` the workflow runs, `MediaUrl` the voice agent's URL; `layouts` tells which layout there is. The tables are
the platform's: their schema is never altered, and only two kinds of rows are locked, a run that is updated and a
configuration that is removed.
"""

from shared.platform.dograh.accounts import Accounts
from shared.platform.dograh.configurations import ConfigurationRow, Configurations
from shared.platform.dograh.layouts import Watch
from shared.platform.dograh.media_url import MediaUrl
from shared.platform.dograh.routes import Routes
from shared.platform.dograh.runs import Runs

__all__ = ["Accounts", "ConfigurationRow", "Configurations", "MediaUrl", "Routes", "Runs", "Watch"]

"""The platform's tables (Dograh, layout 2026-02). Nothing else reads or writes them.

`Configurations` are the tenants' Asterisks, `Accounts` who there is and who pays, `Routes` which workflow serves a
call, `Runs` the workflow runs of calls: each process takes what it needs. The tables belong to the platform: never
altered, never locked but for the run being updated and the configuration being removed.
"""

from shared.platform.dograh.accounts import Account, Accounts
from shared.platform.dograh.configurations import ConfigurationRow, Configurations
from shared.platform.dograh.routes import NoRoute, Route, Routes
from shared.platform.dograh.runs import Runs

__all__ = ["Account", "Accounts", "ConfigurationRow", "Configurations", "NoRoute", "Route", "Routes", "Runs"]

"""Which release runs here."""

from __future__ import annotations

import importlib.metadata

#: Of the installed package; a checkout without one is of no release.
try:
    VERSION = importlib.metadata.version("ari-pipeline")
except importlib.metadata.PackageNotFoundError:
    VERSION = "unreleased"

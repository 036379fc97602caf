"""The layouts of the platform, as far as its API differs by them."""

from __future__ import annotations

from typing import Literal

Layout = Literal["2026-02", "newest"]

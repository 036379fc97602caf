"""Made samples of a long run (chaos/soak.py)."""

from __future__ import annotations

import random
from collections.abc import Callable

from chaos.soak import Sample

MEBIBYTE = 1024 * 1024
Change = Callable[[Sample, float], None]


def made(change: Change = lambda sample, minute: None, *, minutes: float = 30) -> list[Sample]:
    """Samples of a steady run with the noise that a real one has, each changed by (sample, minute)."""
    noise = random.Random(7)
    samples = []
    for number in range(int(minutes * 6) + 1):
        minute = number / 6
        sample: Sample = {
            "at": 1_800_000_000 + minute * 60,
            "processes": {
                name: {
                    "pid": pid,
                    "resident_bytes": 60 * MEBIBYTE + noise.randrange(-MEBIBYTE // 4, MEBIBYTE // 4),
                    "proportional_bytes": 50 * MEBIBYTE,
                    "files": 40 + noise.randrange(6),
                    "threads": 20,
                }
                for pid, name in enumerate(("worker.1", "worker.2", "listener.1"), 100)
            },
            "redis": {
                "run_id": "first",
                "memory_bytes": 2 * MEBIBYTE + noise.randrange(MEBIBYTE // 10),
                "keys": 30,
                "clients": 20,
            },
            "postgres": {
                "connections": 40 + noise.randrange(3),
                "tables": {
                    "ari.calls": {
                        "dead": noise.randrange(3500),
                        "live": int(minute * 300),
                        # 30 a second.
                        "changed": int(minute * 1800),
                        "table_bytes": 1000,
                        "index_bytes": 1000,
                    }
                },
            },
        }
        change(sample, minute)
        samples.append(sample)
    return samples

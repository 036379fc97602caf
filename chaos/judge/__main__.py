"""The judge as a process: `python -m chaos.judge`. A line of JSON says what to observe, each further one asks.

`{"ask": "ready"}` is answered by `{"ready": …}`, `{"ask": "setup"}` by `{"legs": {…}}` within a few milliseconds, and
`{"ask": "verdict"}` by the verdict, which is written to `verdict.json` too. It ends with its input.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from dataclasses import replace
from typing import Any

import psycopg
import requests

from chaos.judge import deeds, recordings, verdict
from chaos.judge.evidence import Evidence, Left
from chaos.judge.observer import Observer
from chaos.judge.spec import Spec
from chaos.judge.tables import Tables


def main() -> None:
    threading.excepthook = _end
    spec = Spec.parse(sys.stdin.readline())
    observer = Observer(spec)
    observer.start()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_answer(json.loads(line)["ask"], spec, observer)) + "\n")
        sys.stdout.flush()


def _end(failed: threading.ExceptHookArgs) -> None:
    """A judge whose thread has failed sees less than it says: it ends, and its log says why."""
    traceback.print_exception(failed.exc_type, failed.exc_value, failed.exc_traceback)
    os._exit(1)


def _answer(asked: str, spec: Spec, observer: Observer) -> dict[str, Any]:
    match asked:
        case "ready":
            return {"ready": observer.is_ready}
        case "setup":
            return {"legs": observer.in_setup()}
        case "verdict":
            found = _verdict(spec, observer)
            (spec.folder / "verdict.json").write_text(json.dumps(found, indent=1))
            return found
        case _:
            return {"error": f"{asked!r} is not ready, setup or verdict"}


def _verdict(spec: Spec, observer: Observer) -> dict[str, Any]:
    try:
        tables, left = observer.last_look()
    except (requests.RequestException, psycopg.Error) as exc:
        tables, left = Tables(), Left(problem=f"a server does not answer: {exc}")
    with observer.frozen() as history:
        evidence = Evidence(
            history=history,
            tables=tables,
            deeds=deeds.read(spec.folder / "deeds.jsonl"),
            now=time.time(),
            left=left,
            waiting_seconds=spec.waiting_seconds,
            silence_seconds=spec.silence_seconds,
            organizations=spec.apps,
        )
        heard = recordings.listen(spec, evidence)
        return verdict.judge(replace(evidence, heard=heard), timeline=observer.story)


if __name__ == "__main__":
    main()

"""Checks monitoring/dashboard.json by the types of Grafana's schema package: `python -m devstack.dashboard_types`.

It needs npm and its registry, so it is no part of the tests. The package has types for the dashboard and the frame of
its panels; for the options of a panel and for the queries of Prometheus it has none that JSON could be checked by.
"""

from __future__ import annotations

import shutil
import sys

from devstack import folders, monitoring, processes

_PACKAGES = ("@grafana/schema@13", "typescript@7")
_OPTIONS = [
    "--noEmit", "--strict", "--skipLibCheck", "--moduleResolution=bundler", "--module=esnext", "--target=es2022",
]  # fmt: skip


def main() -> int:
    """Check the file; return the exit status: 1 if a type does not fit, 2 if it could not be checked."""
    npm, npx = shutil.which("npm"), shutil.which("npx")
    if npm is None or npx is None:
        sys.stderr.write("not checked: there is no npm\n")
        return 2
    folder = folders.make(folders.cache() / "grafana-schema", mode=0o755)
    try:
        processes.run([npm, "install", "--silent", "--prefix", folder, *_PACKAGES], cwd=folder)
    except processes.ProcessError as exc:
        sys.stderr.write(f"not checked: npm could not install {' and '.join(_PACKAGES)}: {exc}\n")
        return 2
    text = (monitoring.FOLDER / "dashboard.json").read_text()
    source = f'import type {{ Dashboard }} from "@grafana/schema";\nexport const dashboard: Dashboard = {text};\n'
    (folder / "dashboard.ts").write_text(source)
    try:
        processes.run([npx, "tsc", *_OPTIONS, "dashboard.ts"], cwd=folder)
    except processes.ProcessError as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    sys.stdout.write("monitoring/dashboard.json has the types of @grafana/schema\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The files that pages load: those of others are as their release has them, and every one is kept by browsers."""

from __future__ import annotations

import gzip
import hashlib
import json
import re

from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from console.assets import FOLDER, Assets

VENDOR = FOLDER / "vendor"
MANIFEST = json.loads((VENDOR / "manifest.json").read_text())


def test_each_vendored_file_is_the_one_of_the_manifest() -> None:
    listed = {name: digest for package in MANIFEST for name, digest in package["files"].items()}
    present = {path.name for path in VENDOR.iterdir()} - {"manifest.json"}
    assert present == set(listed)
    for name, digest in listed.items():
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == digest, name


def test_each_package_names_its_version_and_brings_its_licence() -> None:
    assert {package["name"] for package in MANIFEST} == {"htmx.org", "htmx-ext-sse", "uplot"}
    for package in MANIFEST:
        assert re.fullmatch(r"\d+\.\d+\.\d+", package["version"])
        assert package["licence"] in {"MIT", "0BSD"}
        assert any(name.startswith("LICENSE.") for name in package["files"])


def client() -> tuple[Assets, TestClient]:
    assets = Assets()
    return assets, TestClient(Starlette(routes=[Route("/static/{version}/{name:path}", assets.respond)]))


def test_a_file_is_compressed_and_kept_for_ever_under_a_name_of_its_content() -> None:
    assets, http = client()
    answer = http.get(assets.url("vendor/htmx.min.js"))
    assert answer.status_code == 200
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert answer.content == (VENDOR / "htmx.min.js").read_bytes()
    assert (
        http.get(assets.url("console.css"), headers={"accept-encoding": "identity"}).content
        == (FOLDER / "console.css").read_bytes()
    )


def test_no_other_file_is_given_out() -> None:
    assets, http = client()
    version = assets.url("console.css").split("/")[2]
    for name in ("console.js", "../app.py", "..%2fapp.py", "%2e%2e/app.py", "vendor/manifest.json", "nothing.css"):
        assert http.get(f"/static/{version}/{name}").status_code == 404, name


def test_all_scripts_and_styles_together_are_small() -> None:
    sizes = {
        path.name: len(gzip.compress(path.read_bytes(), 9))
        for path in FOLDER.rglob("*")
        if path.suffix in (".js", ".css", ".svg")
    }
    assert sum(sizes.values()) < 60_000, sizes

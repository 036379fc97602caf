"""Which keys pay for a run: of the organization's model configuration, or of the definition's own."""

from __future__ import annotations

from typing import Any

import pytest

from shared.platform.dograh import model_configurations
from shared.platform.dograh.model_configurations import ModelConfiguration


def ours(key: object) -> dict[str, object]:
    return {"provider": "dograh", "api_key": key}


def byok(**services: object) -> dict[str, Any]:
    return {"version": 2, "mode": "byok", "byok": {"mode": "pipeline", "pipeline": services}}


def managed(key: object) -> dict[str, Any]:
    return {"version": 2, "mode": "dograh", "dograh": {"api_key": key}}


OTHERS = {"provider": "openai", "api_key": "sk-hunter2"}


@pytest.mark.parametrize(
    ("document", "keys"),
    [
        pytest.param(byok(llm=ours("a"), stt=ours("b"), tts=ours("c"), embeddings=ours("d")), "abcd", id="each"),
        pytest.param(byok(llm=ours(["a", "b"]), stt=ours(["b", "c"])), "abc", id="several-each-once"),
        pytest.param(byok(llm=OTHERS, stt=ours("b")), "b", id="another-provider"),
        pytest.param(byok(llm=ours(""), stt=ours(None), tts=ours(7), embeddings=ours(["", None, "d"])), "d", id="none"),
        pytest.param({"version": 2, "mode": "byok", "byok": {"mode": "realtime", "realtime": {"llm": ours("a")}}}, "a",
                     id="realtime"),
        pytest.param({}, "", id="empty"),
        pytest.param(None, "", id="no-row"),
        pytest.param([1], "", id="a-list"),
        pytest.param({"mode": "byok", "byok": {"mode": ["x"]}}, "", id="a-mode-that-is-none"),
        pytest.param(byok(llm="text", stt=[ours("a")]), "", id="services-that-are-none"),
    ],
)  # fmt: skip
def test_every_service_of_the_platform_s_own_has_its_keys(document: object, keys: str) -> None:
    assert model_configurations.read(document, {}) == ModelConfiguration(service_keys=tuple(keys))


@pytest.mark.parametrize(("key", "keys"), [("a", ("a",)), (["a", "b"], ("a", "b")), (None, ())])
def test_a_configuration_that_the_platform_manages_needs_a_correlation_id(key: object, keys: tuple[str, ...]) -> None:
    assert model_configurations.read(managed(key), {}) == ModelConfiguration(service_keys=keys, is_managed=True)


@pytest.mark.parametrize(
    ("workflow", "keys", "is_managed"),
    [
        pytest.param({}, "o", True, id="none"),
        pytest.param({"model_configuration_v2_override": byok(llm=ours("w"))}, "w", False, id="another-document"),
        pytest.param({"model_configuration_v2_override": managed("w")}, "w", True, id="managed-by-another-key"),
        pytest.param({"model_configuration_v2_override": None}, "o", True, id="taken-back"),
        pytest.param({"model_overrides": {"llm": ours("w")}}, "wo", True, id="one-service"),
        pytest.param({"model_overrides": dict.fromkeys(("llm", "stt", "tts", "embeddings"), OTHERS)}, "", False,
                     id="every-service-elsewhere"),
        pytest.param({"model_overrides": {"llm": {"temperature": 1}}}, "o", True, id="no-key-of-its-own"),
        pytest.param("text", "o", True, id="no-object"),
    ],
)  # fmt: skip
def test_the_definition_s_own_configuration_counts(workflow: object, keys: str, *, is_managed: bool) -> None:
    found = model_configurations.read(managed("o"), workflow)
    assert found == ModelConfiguration(service_keys=tuple(keys), is_managed=is_managed)


def test_no_key_shows() -> None:
    assert "hunter2" not in repr(model_configurations.read(managed("hunter2"), {}))

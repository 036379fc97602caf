"""Which of a call's services are the platform's own, and are paid for in credits (newest layout).

The organization's model configuration, unless the definition that runs has its own. It is a JSON document
`{version: 2, mode: "dograh", dograh: {api_key}}`, where the platform manages every service, or
`{version: 2, mode: "byok", byok: {mode: "pipeline", pipeline: {llm, stt, tts, embeddings}}}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: The organization_configurations row with the model configuration.
KEY = "MODEL_CONFIGURATION_V2"
#: In a definition's workflow_configurations: another document, or changes of single services.
_OVERRIDE, _CHANGES = "model_configuration_v2_override", "model_overrides"
_SERVICES = ("llm", "stt", "tts", "embeddings")
_OURS = "dograh"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfiguration:
    """The keys by which the platform's own services are paid."""

    #: Each once, in the order of the services.
    service_keys: tuple[str, ...] = field(default=(), repr=False)
    #: The platform manages every service (version 2): a run needs an authorization with a correlation id.
    is_managed: bool = False


def read(organization: object, workflow: object) -> ModelConfiguration:
    """Return what a run uses.

    Args:
        organization: The organization's document, as stored; it may be anything.
        workflow: The definition's workflow_configurations, likewise.
    """
    own = workflow if isinstance(workflow, dict) else {}
    document = own.get(_OVERRIDE) or organization
    services, is_managed = _services(document)
    changes = own.get(_CHANGES)
    if isinstance(changes, dict) and not own.get(_OVERRIDE):
        services = {name: _changed(services.get(name), changes.get(name)) for name in _SERVICES}
        is_managed = is_managed and any(map(_is_ours, services.values()))
    keys = dict.fromkeys(key for name in _SERVICES for key in _keys(services.get(name)))
    return ModelConfiguration(service_keys=tuple(keys), is_managed=is_managed)


def _services(document: object) -> tuple[Mapping[str, Any], bool]:
    if not isinstance(document, dict):
        return {}, False
    if document.get("mode") == _OURS:
        managed = document.get(_OURS)
        service = {"provider": _OURS, "api_key": managed.get("api_key") if isinstance(managed, dict) else None}
        return dict.fromkeys(_SERVICES, service), True
    byok = document.get("byok")
    services = byok.get(byok.get("mode")) if isinstance(byok, dict) and isinstance(byok.get("mode"), str) else None
    return (services, False) if isinstance(services, dict) else ({}, False)


def _changed(service: object, change: object) -> object:
    """Return a service as a definition changes it: another provider's has nothing of the one before."""
    if not isinstance(change, dict):
        return service
    kept = service if isinstance(service, dict) and change.get("provider") in (None, service.get("provider")) else {}
    return kept | change


def _is_ours(service: object) -> bool:
    return isinstance(service, dict) and service.get("provider") == _OURS


def _keys(service: object) -> list[str]:
    if not isinstance(service, dict) or service.get("provider") != _OURS:
        return []
    keys = service.get("api_key")
    return [key for key in (keys if isinstance(keys, list) else [keys]) if isinstance(key, str) and key]

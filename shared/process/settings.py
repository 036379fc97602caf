"""Settings from the environment and `.env`, validated before anything is opened; one class per process."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args

import pydantic
import pydantic_settings
from pydantic import Field, SecretStr
from pydantic import fields as pydantic_fields

from shared import errors
from shared.asterisk import address_guard
from shared.call.limits import Limits, Step
from shared.process import sealing

_MINIMUM_KEY_LENGTH = 16


def _postgres(url: SecretStr) -> SecretStr:
    if not url.get_secret_value().startswith(("postgresql://", "postgres://")):
        raise ValueError("must begin with postgresql://")
    return url


_DatabaseUrl = Annotated[SecretStr, pydantic.AfterValidator(_postgres)]
_DATABASE_URL = Field(description="Postgres: `postgresql://user:password@host/database`.")


class Environment(pydantic_settings.BaseSettings):
    """Where settings come from. Each field is the environment variable of the same name, upper case."""

    model_config = pydantic_settings.SettingsConfigDict(
        env_file=".env",
        env_file_encoding="utf-8",
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
    )


class Guarded(Environment):
    """Which addresses of tenants' endpoints are connected to."""

    endpoint_guard: Literal["open", "strict"] = Field(
        default="open",
        description="`strict` also refuses endpoints at loopback and private addresses. Link-local, metadata, multicast"
        " and reserved addresses are refused always.",
    )
    endpoint_allow: str = Field(
        default="", description="Networks to allow under `strict`, comma-separated: `10.20.0.0/16, fd00::/8`."
    )
    endpoint_deny: str = Field(
        default="",
        description="Networks to refuse, comma-separated. In both lists, the narrower network counts.",
    )

    @pydantic.field_validator("endpoint_allow", "endpoint_deny")
    @classmethod
    def _are_networks(cls, text: str) -> str:
        address_guard.parse_networks(text)
        return text

    def guard(self) -> address_guard.AddressGuard:
        """The rule for endpoints."""
        return address_guard.AddressGuard(
            allow=address_guard.parse_networks(self.endpoint_allow),
            deny=address_guard.parse_networks(self.endpoint_deny),
            strict=self.endpoint_guard == "strict",
        )


class Base(Guarded):
    """What every process reads."""

    redis_url: SecretStr = Field(description="Redis, a database of its own: `redis://host:6379/0`.")
    secret_key: SecretStr = Field(
        description="One or several keys of at least 16 characters, comma-separated: the first seals, any opens."
    )
    id_prefix: str = Field(
        default="aip-",
        description="Begins every channel and bridge id of ours. Two installations on one Asterisk need two.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="The least to log.")
    log_format: Literal["text", "json"] = Field(default="text", description="How a log line is written.")
    drain_seconds: float = Field(default=15.0, ge=0, le=300, description="Longest stop after SIGTERM.")
    process_name: str = Field(default="", description="How this process calls itself; host and pid when empty.")
    health_file: str = Field(
        default="",
        description="Liveness file of this process, on a tmpfs: read by `python -m shared.process.health`.",
    )

    @pydantic.field_validator("redis_url")
    @classmethod
    def _redis(cls, url: SecretStr) -> SecretStr:
        if not url.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must begin with redis://, rediss:// or unix://")
        return url

    @pydantic.field_validator("secret_key")
    @classmethod
    def _keys(cls, keys: SecretStr) -> SecretStr:
        if any(len(key.strip()) < _MINIMUM_KEY_LENGTH for key in keys.get_secret_value().split(",")):
            raise ValueError(f"each key needs at least {_MINIMUM_KEY_LENGTH} characters")
        return keys

    @pydantic.field_validator("id_prefix")
    @classmethod
    def _prefix(cls, prefix: str) -> str:
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,14}-", prefix, re.ASCII):
            raise ValueError("must be 2 to 16 of a-z, 0-9 and -, begin with a letter and end with -")
        return prefix

    @property
    def secret_keys(self) -> tuple[str, ...]:
        """The keys, the sealing one first."""
        return tuple(key.strip() for key in self.secret_key.get_secret_value().split(","))

    def sealer(self) -> sealing.Sealer:
        """Seals and opens with our keys."""
        return sealing.Sealer(self.secret_keys)

    @property
    def name(self) -> str:
        """Who this process is, in claims, leases, logs and the timeline."""
        return self.process_name or f"{socket.gethostname()}-{os.getpid()}"


class WithDatabase(Base):
    """What processes with a database read."""

    database_url: _DatabaseUrl = _DATABASE_URL
    database_pool: int = Field(default=10, ge=1, le=200, description="Most Postgres connections of one process.")
    run_completion: Literal["ours", "platform"] = Field(
        default="ours", description="Who completes the runs of connected calls: we, or the platform's own API process."
    )
    storage_backend: Literal["s3", "minio"] = Field(
        default="s3", description="Written to workflow_runs.storage_backend of the runs we create."
    )
    connect_seconds: float = Field(default=2.0, gt=0, le=30, description="To open a connection to an Asterisk.")
    read_seconds: float = Field(default=4.0, ge=3, le=60, description="For an Asterisk to answer one request.")
    queue_seconds: float = Field(default=3.0, gt=0, le=60, description="For a message to wait before it counts lost.")
    media_check_seconds: float = Field(
        default=3.0, gt=0, le=60, description="For a media leg to become ready before we ask for it; asked 3 times."
    )
    call_seconds: float = Field(default=14400.0, gt=0, description="A connected call is ended after this long.")
    stale_start_seconds: float = Field(
        default=10.0, gt=0, le=60, description="A call picked up later than this is refused with congestion."
    )
    concurrent_calls: int | None = Field(
        default=None,
        ge=0,
        description="Most calls of an organization at the same time, where no limit of its own says so.",
    )

    def limits(self) -> Limits:
        """The bounds of a call."""
        return Limits(
            connect_seconds=self.connect_seconds,
            read_seconds=self.read_seconds,
            queue_seconds=self.queue_seconds,
            media_check_seconds=self.media_check_seconds,
            call_seconds=self.call_seconds,
            stale_start_seconds=self.stale_start_seconds,
        )


class WithHeartbeats(Base):
    """What both ends of the listeners' heartbeats read."""

    listener_timeout_seconds: float = Field(
        default=2.0, gt=0, le=60, description="A listener silent for this long is taken for dead."
    )


class Listener(WithHeartbeats):
    """The listener's settings."""

    listener_capacity: int = Field(default=2000, ge=1, description="Most event sockets of one listener.")
    listener_buffer: int = Field(default=10_000, ge=1, description="Most events waiting for Redis, over all sockets.")
    listener_buffer_share: int = Field(default=2_000, ge=1, description="Most events waiting of one connection.")
    heartbeat_seconds: float = Field(
        default=0.5,
        gt=0,
        le=10,
        description="Between two heartbeats; at most a third of LISTENER_TIMEOUT_SECONDS, so that two may be late.",
    )

    @pydantic.field_validator("heartbeat_seconds")
    @classmethod
    def _in_time(cls, seconds: float, info: pydantic.ValidationInfo) -> float:
        if seconds * 3 > info.data.get("listener_timeout_seconds", seconds * 3):
            raise ValueError("must be at most a third of LISTENER_TIMEOUT_SECONDS")
        return seconds


class Worker(WithDatabase):
    """A worker's settings."""

    worker_threads: int = Field(default=8, ge=1, le=64, description="Steps that set calls up, at once in one process.")
    teardown_threads: int = Field(default=4, ge=1, le=64, description="Teardowns at work at once in one process.")
    resync_threads: int = Field(default=2, ge=1, le=64, description="Resyncs at work at once in one process.")
    worker_queues: str = Field(
        default="",
        description="Queues to serve, comma-separated: admission, runs, media, bridge, teardown, resync; or all.",
    )
    asterisk_requests: int = Field(
        default=10, ge=2, le=60, description="Most requests in flight from one process to one Asterisk."
    )
    media_token: Literal["on", "off"] = Field(
        default="on", description="Whether the media URL carries a token by which the agent knows us."
    )
    media_token_secret: SecretStr | None = Field(
        default=None, description="Signs the media token; derived from the first SECRET_KEY when not set."
    )

    quota: Literal["sql", "http", "none"] = Field(
        default="sql",
        description="Who refuses calls by quota: our limits (`arictl quota`), the platform's quota service, or nobody.",
    )
    mps_api_url: str = Field(
        default="",
        validate_default=True,
        description="With `QUOTA=http`: the quota service, `https://host[:port][/prefix]`.",
    )
    mps_secret_key: SecretStr | None = Field(
        default=None,
        description="By which the quota service knows us; not set for a self-hosted platform, which is told the user.",
    )
    quota_unreachable: Literal["refuse", "allow"] = Field(
        default="refuse", description="What happens to calls while the quota service gives no usable answer."
    )

    @pydantic.field_validator("mps_api_url")
    @classmethod
    def _quota_service(cls, url: str, info: pydantic.ValidationInfo) -> str:
        if info.data.get("quota") == "http" and not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", url):
            raise ValueError("QUOTA=http needs http(s)://host[:port][/prefix] here, without user, query and fragment")
        return url

    @pydantic.field_validator("mps_secret_key")
    @classmethod
    def _header(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None and not re.fullmatch(r"[!-~]+", secret.get_secret_value()):
            raise ValueError("goes into a header: printable ASCII without spaces")
        return secret

    @pydantic.field_validator("worker_queues")
    @classmethod
    def _queues(cls, queues: str) -> str:
        unknown = {name.strip() for name in queues.split(",") if name.strip()} - {*Step, "resync"}
        if unknown:
            raise ValueError(f"no such queue: {', '.join(sorted(unknown))}")
        return queues

    @property
    def queues(self) -> frozenset[str]:
        """The queues to serve; empty means all."""
        return frozenset(name.strip() for name in self.worker_queues.split(",") if name.strip())

    @property
    def pools(self) -> dict[str, int]:
        """WorkerPool → its threads."""
        return {"set-up": self.worker_threads, "teardown": self.teardown_threads, "resync": self.resync_threads}

    @property
    def token_secret(self) -> str | None:
        """What signs media tokens; None when they are off."""
        if self.media_token == "off":  # noqa: S105 - a switch, not a secret
            return None
        if self.media_token_secret is not None:
            return self.media_token_secret.get_secret_value()
        return sealing.media_secret(self.secret_keys[0])


class Scheduler(WithDatabase, WithHeartbeats):
    """The scheduler's settings."""

    configurations_seconds: float = Field(default=5.0, gt=0, le=60, description="Between two reads of configurations.")
    sweep_seconds: float = Field(default=1.0, gt=0, le=10, description="Between two sweeps of overdue calls.")
    assign_seconds: float = Field(default=0.25, gt=0, le=10, description="Between two looks at the listeners.")
    reclaim_seconds: float = Field(
        default=10.0,
        ge=0,
        le=3600,
        description="After another client took an app: the one attempt to take it back.",
    )
    resync_seconds: float = Field(default=15.0, gt=0, le=300, description="Between two resyncs of a connection.")
    lease_seconds: float = Field(default=2.0, gt=0, le=60, description="How long the leader's lease lasts.")
    removal_drain_seconds: float = Field(
        default=14_400.0, ge=0, description="How long a removed configuration's calls may go on."
    )
    completed_runs_seconds: float = Field(
        default=5.0, gt=0, le=300, description="Between two looks for connected calls whose runs are completed."
    )
    retention_days: int = Field(
        default=90,
        ge=0,
        le=36_500,
        description="How long calls that have ended are kept, with their timeline: 32 or more; 0 keeps them for ever.",
    )
    sweep_batch: int = Field(default=500, ge=1, le=10_000, description="Most overdue calls driven on in one sweep.")

    @pydantic.field_validator("retention_days")
    @classmethod
    def _whole_months(cls, days: int) -> int:
        # A month's minutes are counted from its calls.
        if 0 < days < 32:
            raise ValueError("must be 0, or at least 32: the quota counts this month's minutes from its calls")
        return days


class Operator(WithDatabase):
    """The settings of arictl where it acts on calls, as a process would."""


class Tool(Environment):
    """arictl's settings where it only looks, or writes a configuration."""

    database_url: _DatabaseUrl = _DATABASE_URL


class Doctor(Environment):
    """What `arictl doctor` reads: what is missing or wrong is a finding of its own (`complaints`), and no error."""

    database_url: SecretStr | None = None
    redis_url: SecretStr | None = None
    secret_key: SecretStr | None = None


_S = TypeVar("_S", bound=Environment)


def load(kind: type[_S]) -> _S:
    """Reads a process's settings.

    Raises:
        InvalidSettings: Names every variable that is missing or wrong; shows no value.
    """
    try:
        return kind.model_validate({})
    except pydantic.ValidationError as exc:
        lines = [
            f"  {_variable(kind, error['loc'])}: {_complaint(kind, error)}" for error in exc.errors(include_input=False)
        ]
        raise errors.InvalidSettings("\n".join(["these settings need your attention:", *lines])) from None


def complaints() -> dict[str, str]:
    """Every variable of any process that is missing or wrong → what is wrong with it; shows no value."""
    found: dict[str, str] = {}
    for kind in (Listener, Worker, Scheduler):
        try:
            kind.model_validate({})
        except pydantic.ValidationError as exc:
            wrong = exc.errors(include_input=False)
            found |= {_variable(kind, error["loc"]): _complaint(kind, error) for error in wrong}
    return found


def _variable(kind: type[Environment], location: tuple[int | str, ...]) -> str:
    return str(location[0]).upper() if location else kind.__name__


def _complaint(kind: type[Environment], error: Mapping[str, Any]) -> str:
    if error["type"] == "missing":
        return "is not set (environment or .env)"
    if error["type"] == "value_error":
        return str(error["msg"]).removeprefix("Value error, ")
    return _wanted(kind.model_fields[str(error["loc"][0])])


def _wanted(field: pydantic_fields.FieldInfo) -> str:
    """What a number or a choice has to be, in our words rather than pydantic's."""
    kinds = get_args(field.annotation) or (field.annotation,)
    if isinstance(kinds[0], str):
        return f"must be one of {', '.join(kinds)}; the default is {field.default}"
    bounds = [
        f"{words} {value:g}"
        for words, name in (("more than", "gt"), ("at least", "ge"), ("at most", "le"))
        for bound in field.metadata
        if (value := getattr(bound, name, None)) is not None
    ]
    number = "a whole number" if int in kinds else "a number"
    default = "not set by default" if field.default is None else f"the default is {field.default:g}"
    return f"must be {number}, {' and '.join(bounds)}; {default}"

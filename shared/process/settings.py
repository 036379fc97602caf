"""Settings from the environment and `.env`, validated before anything is opened; one class for each process."""

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
from shared.call import ids
from shared.call.limits import Limits
from shared.call.steps import Step
from shared.process import sealing

_MINIMUM_KEY_LENGTH = 16


def _postgres(url: SecretStr) -> SecretStr:
    if not url.get_secret_value().startswith(("postgresql://", "postgres://")):
        raise ValueError("must begin with postgresql://")
    return url


_DatabaseUrl = Annotated[SecretStr, pydantic.AfterValidator(_postgres)]
_DATABASE_URL = Field(description="Postgres: `postgresql://user:password@host/database`.")


class Environment(pydantic_settings.BaseSettings):
    """The sources of settings. Each field is the environment variable of the same name in upper case."""

    model_config = pydantic_settings.SettingsConfigDict(
        env_file=".env",
        env_file_encoding="utf-8",
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
    )


class Guarded(Environment):
    """The addresses of tenants' endpoints that may be connected to."""

    endpoint_guard: Literal["open", "strict"] = Field(
        default="open",
        description="`strict` also refuses endpoints at loopback and private addresses. Link-local, metadata, multicast"
        " and reserved addresses are always refused.",
    )
    endpoint_allow: str = Field(
        default="", description="Networks to allow under `strict`, comma-separated: `10.20.0.0/16, fd00::/8`."
    )
    endpoint_deny: str = Field(
        default="",
        description="Networks to refuse, comma-separated. The narrowest network with an address counts.",
    )

    @pydantic.field_validator("endpoint_allow", "endpoint_deny")
    @classmethod
    def _are_networks(cls, text: str) -> str:
        address_guard.parse_networks(text)
        return text

    def guard(self) -> address_guard.AddressGuard:
        """Return the rule for endpoints."""
        return address_guard.AddressGuard(
            allow=address_guard.parse_networks(self.endpoint_allow),
            deny=address_guard.parse_networks(self.endpoint_deny),
            strict=self.endpoint_guard == "strict",
        )


class Base(Guarded):
    """The settings of every process."""

    redis_url: SecretStr = Field(description="Redis, a database used by nothing else: `redis://host:6379/0`.")
    secret_key: SecretStr = Field(
        description="Keys of at least 16 characters, comma-separated: the first seals secrets, any opens them."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The lowest level that is logged."
    )
    log_format: Literal["text", "json"] = Field(default="text", description="The format of log lines.")
    group_messages: int = Field(
        default=2_000,
        ge=100,
        le=100_000,
        description="Maximum number of events of one connection in Redis, waiting or in work. Further ones are refused,"
        " and the connection is resynced instead.",
    )
    group_bytes: int = Field(
        default=2 * 2**20,
        ge=2**18,
        le=2**30,
        description="Maximum size in bytes of these events.",
    )
    drain_seconds: float = Field(
        default=15.0, ge=0, le=300, description="After SIGTERM, a process stops within this time."
    )
    name_lookups: int = Field(
        default=1024,
        ge=16,
        le=10_000,
        description="Maximum number of host names that one process looks up at the same time. Names that did not"
        " answer last time may have a quarter of them.",
    )
    process_name: str = Field(
        default="", description="The name of this process in logs, claims and leases; host and pid if empty."
    )
    health_file: str = Field(
        default="",
        description="The liveness file of this process, on a tmpfs; `python -m shared.process.health` checks it.",
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

    @property
    def secret_keys(self) -> tuple[str, ...]:
        """The keys; the first seals."""
        return tuple(key.strip() for key in self.secret_key.get_secret_value().split(","))

    def sealer(self) -> sealing.Sealer:
        """Return a sealer with these keys."""
        return sealing.Sealer(self.secret_keys)

    @property
    def name(self) -> str:
        """The name of this process in claims, leases, logs and the timeline."""
        return self.process_name or f"{socket.gethostname()}-{os.getpid()}"


class WithDatabase(Base):
    """The settings of processes with a database."""

    database_url: _DatabaseUrl = _DATABASE_URL
    database_pool: int = Field(
        default=10, ge=1, le=200, description="Maximum number of Postgres connections of one process."
    )
    database_seconds: float = Field(
        default=2.0,
        ge=0.5,
        le=10,
        description="Time-out of one statement of Postgres, of a lock that it waits for, and of waiting for a"
        " connection. A Postgres that answers nothing is left a second later.",
    )
    database_idle_seconds: float = Field(
        default=3.0,
        ge=1,
        le=60,
        description="A transaction in which a process is silent for this time is ended by Postgres, and its locks"
        " with it: the process may be frozen, and callers wait.",
    )
    run_completion: Literal["ours", "platform"] = Field(
        default="ours",
        description="Whether we (`ours`) or the platform's API process complete the runs of connected calls.",
    )
    platform_layout: Literal["auto", "2026-02", "newest"] = Field(
        default="auto",
        description="The layout of the platform's tables; `auto`: what is found. A layout that this release does not"
        " serve is refused with a reason.",
    )
    storage_backend: Literal["s3", "minio"] = Field(
        default="s3", description="The value of workflow_runs.storage_backend in the runs we create."
    )
    id_prefix: str | None = Field(
        default=None,
        description="The beginning of our channel and bridge ids, instead of the one that this installation has drawn.",
    )
    connect_seconds: float = Field(default=2.0, gt=0, le=30, description="Time-out for connecting to an Asterisk.")
    read_seconds: float = Field(
        default=4.0, ge=3, le=60, description="Time-out for an Asterisk's answer to one request."
    )
    queue_seconds: float = Field(
        default=3.0, gt=0, le=60, description="A message that has waited this long counts as lost."
    )
    media_check_seconds: float = Field(
        default=3.0,
        gt=0,
        le=60,
        description="A media leg that is not ready after this time is looked up; at most 3 times.",
    )
    call_seconds: float = Field(default=14400.0, gt=0, description="A connected call is ended after this time.")
    teardown_hours: float = Field(
        default=24.0,
        ge=1,
        le=720,
        description="A call whose Asterisk gives no answer is torn down again and again for this time; then it has"
        " ended, not verified.",
    )
    stale_start_seconds: float = Field(
        default=10.0, gt=0, le=60, description="A call picked up later than this is refused with congestion."
    )
    timeline_rows: int = Field(
        default=120,
        ge=10,
        le=100_000,
        description="Maximum number of timeline rows of one kind that one process writes in an hour for a connection:"
        " breaker changes, foreign legs, findings. Further ones are counted in the next row.",
    )
    concurrent_calls: int | None = Field(
        default=None,
        ge=0,
        description="Maximum number of simultaneous calls of an organization that has no limit of its own.",
    )

    @pydantic.field_validator("id_prefix")
    @classmethod
    def _prefix(cls, prefix: str | None) -> str | None:
        if prefix is not None and not re.fullmatch(ids.PREFIX, prefix, re.ASCII):
            raise ValueError("must be 2 to 16 of a-z, 0-9 and -, begin with a letter and end with -")
        return prefix

    def limits(self) -> Limits:
        """Return the time limits of a call."""
        return Limits(
            database_seconds=self.database_seconds,
            connect_seconds=self.connect_seconds,
            read_seconds=self.read_seconds,
            queue_seconds=self.queue_seconds,
            media_check_seconds=self.media_check_seconds,
            call_seconds=self.call_seconds,
            teardown_seconds=self.teardown_hours * 3600,
            stale_start_seconds=self.stale_start_seconds,
        )


class WithHeartbeats(Base):
    """The settings of both ends of the listeners' heartbeats."""

    listener_timeout_seconds: float = Field(
        default=2.0, gt=0, le=60, description="A listener without a heartbeat for this time counts as dead."
    )


class Listener(WithHeartbeats):
    """The listener's settings."""

    listener_capacity: int = Field(default=2000, ge=1, description="Maximum number of event sockets of one listener.")
    listener_buffer: int = Field(
        default=10_000, ge=1, description="Maximum number of events waiting for Redis, for all sockets together."
    )
    listener_buffer_share: int = Field(
        default=2_000, ge=1, description="Maximum number of events waiting for Redis, for one connection."
    )
    event_frames_per_second: int = Field(
        default=2_000,
        ge=10,
        description="An event socket that brings more websocket frames than this, control frames included, over"
        " 10 s is closed and tried again after 200 to 300 s.",
    )
    event_bytes_per_second: int = Field(default=2_000_000, ge=10_000, description="The same for bytes.")
    event_message_bytes: int = Field(
        default=2**18,
        ge=2**16,
        le=2**24,
        description="A larger message of an event socket is refused: parsing one holds up everything else.",
    )
    event_lag_seconds: float = Field(
        default=10.0,
        gt=0,
        le=300,
        description="The same for an event socket that has had more to read than its share, for this time.",
    )
    read_bytes: int = Field(default=2_048, ge=512, le=262_144, description="Bytes of one read of an event socket.")
    read_frames: int = Field(
        default=256,
        ge=1,
        description="Frames after which the other event sockets are read, control frames included.",
    )
    read_ms: float = Field(default=1.0, gt=0, le=100, description="Time after which the other event sockets are read.")
    read_turn_ms: float = Field(
        default=2.0,
        gt=0,
        le=100,
        description="Time after which reading pauses, for as long again, for heartbeats and all else that is due.",
    )
    heartbeat_seconds: float = Field(
        default=0.5,
        gt=0,
        le=10,
        description="Interval of heartbeats; at most a third of LISTENER_TIMEOUT_SECONDS, so that two may be late.",
    )

    @pydantic.field_validator("heartbeat_seconds")
    @classmethod
    def _in_time(cls, seconds: float, info: pydantic.ValidationInfo) -> float:
        if seconds * 3 > info.data.get("listener_timeout_seconds", seconds * 3):
            raise ValueError("must be at most a third of LISTENER_TIMEOUT_SECONDS")
        return seconds


class Worker(WithDatabase):
    """A worker's settings."""

    worker_threads: int = Field(default=8, ge=1, le=64, description="Threads of one process that set up calls.")
    teardown_threads: int = Field(default=4, ge=1, le=64, description="Threads of one process for teardowns.")
    resync_threads: int = Field(default=2, ge=1, le=64, description="Threads of one process for resyncs.")
    worker_queues: str = Field(
        default="",
        description="Queues to serve, comma-separated; all if empty: admission, runs, media, bridge, originate,"
        " teardown, resync.",
    )
    calls_per_hour: int = Field(
        default=36_000,
        ge=10,
        le=10_000_000,
        description="Maximum number of calls that one process receives from one connection in an hour, after a tenth of"
        " them at once. Further callers are refused with congestion.",
    )
    dead_letters: int = Field(
        default=1_000,
        ge=10,
        le=100_000,
        description="Maximum number of dead letters that Redis keeps, for seven days; the oldest are dropped first.",
    )
    dead_letter_bytes: int = Field(
        default=4_096,
        ge=256,
        le=2**20,
        description="Maximum size in bytes that a dead letter keeps of its message, and of its traceback.",
    )
    asterisk_requests: int = Field(
        default=10, ge=2, le=60, description="Maximum number of requests in flight from one process for one connection."
    )
    asterisk_sessions: int = Field(
        default=60,
        ge=2,
        le=10_000,
        description="Maximum number of TCP sessions of all workers together to one Asterisk, that is to one host and"
        " port: below the `sessionlimit` of its http.conf, 100 by default, in which its event sockets count too.",
    )
    answer_bytes: int = Field(
        default=65_536, ge=16_384, le=1_048_576, description="Largest answer of an Asterisk about one thing, in bytes."
    )
    answer_app_bytes: int = Field(
        default=262_144,
        ge=65_536,
        le=2_097_152,
        description="Largest answer about our app, in bytes: a call takes about 100.",
    )
    answer_list_bytes: int = Field(
        default=2_097_152,
        ge=65_536,
        le=16_777_216,
        description="Largest answer that lists all bridges, in bytes: a bridge takes about 400.",
    )
    answer_processor_share: float = Field(
        default=0.05,
        gt=0,
        le=1,
        description="Share of one processor that one process spends on the answers to one connection: above it, its"
        " requests wait.",
    )
    media_token: Literal["on", "off"] = Field(
        default="on", description="Whether the media URL carries a token that authenticates us to the agent."
    )
    media_token_secret: SecretStr | None = Field(
        default=None, description="The key that signs the media token; derived from the first SECRET_KEY if not set."
    )

    quota: Literal["sql", "http", "none"] = Field(
        default="sql",
        description="The quota that calls are checked against: our limits (`sql`, see `arictl quota`), the platform's"
        " quota service (`http`), or none.",
    )
    mps_api_url: str = Field(
        default="",
        validate_default=True,
        description="The quota service for `QUOTA=http`: `https://host[:port][/prefix]`.",
    )
    mps_secret_key: SecretStr | None = Field(
        default=None,
        description="Authenticates us to the quota service; not set for a self-hosted platform, where a request"
        " names the user.",
    )
    quota_unreachable: Literal["refuse", "allow"] = Field(
        default="refuse",
        description="Whether calls are refused or allowed while the quota service gives no usable answer.",
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
            raise ValueError("must be printable ASCII without spaces: it is sent in a header")
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
    def pool_threads(self) -> dict[str, int]:
        """Name of a worker pool → number of its threads."""
        return {"set-up": self.worker_threads, "teardown": self.teardown_threads, "resync": self.resync_threads}

    @property
    def token_secret(self) -> str | None:
        """The key that signs media tokens; None if they are off."""
        if self.media_token == "off":  # noqa: S105 - a switch, not a secret
            return None
        if self.media_token_secret is not None:
            return self.media_token_secret.get_secret_value()
        return sealing.media_secret(self.secret_keys[0])


class Scheduler(WithDatabase, WithHeartbeats):
    """The scheduler's settings."""

    configurations_seconds: float = Field(
        default=5.0, gt=0, le=60, description="Interval at which configurations are read."
    )
    sweep_seconds: float = Field(
        default=0.5,
        gt=0,
        le=10,
        description="Interval of the sweep for overdue calls, and for calls that a dead worker has claimed.",
    )
    assign_seconds: float = Field(
        default=0.25, gt=0, le=10, description="Interval at which the listeners are checked and sockets assigned."
    )
    reclaim_seconds: float = Field(
        default=10.0,
        ge=0,
        le=3600,
        description="After a competing client took over an app, it is reclaimed after this time, once.",
    )
    quarantine_deaths: int = Field(
        default=2,
        ge=1,
        le=100,
        description="An event socket over which this many listeners stopped within QUARANTINE_SECONDS is quarantined.",
    )
    quarantine_seconds: float = Field(
        default=900.0, ge=1, le=86_400, description="No listener gets a quarantined event socket for this time."
    )
    resync_seconds: float = Field(default=15.0, gt=0, le=300, description="Interval of a connection's resyncs.")
    lease_seconds: float = Field(default=2.0, gt=0, le=60, description="Duration of the leader's lease.")
    removal_drain_seconds: float = Field(
        default=14_400.0, ge=0, description="Calls of a removed configuration may continue for this time."
    )
    completed_runs_seconds: float = Field(
        default=5.0, gt=0, le=300, description="Interval at which connected calls with completed runs are looked for."
    )
    retention_days: int = Field(
        default=90,
        ge=0,
        le=36_500,
        description="Ended calls and their timelines are kept for this many days: 32 or more; 0 keeps them for ever.",
    )
    sweep_batch: int = Field(
        default=500, ge=1, le=10_000, description="Maximum number of overdue calls that one sweep dispatches again."
    )

    @pydantic.field_validator("retention_days")
    @classmethod
    def _whole_months(cls, days: int) -> int:
        # The quota counts the minutes of a month from its calls.
        if 0 < days < 32:
            raise ValueError("must be 0, or at least 32: the quota counts this month's minutes from its calls")
        return days


class Operator(WithDatabase):
    """The settings of the arictl commands that act on calls, as a process would."""


class Tool(Environment):
    """The settings of the other arictl commands."""

    database_url: _DatabaseUrl = _DATABASE_URL
    id_prefix: str | None = None
    platform_layout: Literal["auto", "2026-02", "newest"] = "auto"


class Doctor(Environment):
    """The settings of `arictl doctor`: a missing or wrong one is a finding (see `complaints`), not an error."""

    database_url: SecretStr | None = None
    redis_url: SecretStr | None = None
    secret_key: SecretStr | None = None
    id_prefix: str | None = None
    platform_layout: str = "auto"


_S = TypeVar("_S", bound=Environment)


def load(kind: type[_S]) -> _S:
    """Read the settings of a process.

    Raises:
        InvalidSettings: Names every variable that is missing or wrong; shows no value.
    """
    try:
        return kind.model_validate({})
    except pydantic.ValidationError as exc:
        lines = [
            f"  {_variable(kind, error['loc'])}: {_complaint(kind, error)}" for error in exc.errors(include_input=False)
        ]
        raise errors.InvalidSettings("\n".join(["these settings are missing or wrong:", *lines])) from None


def complaints() -> dict[str, str]:
    """Return variable → what is wrong with it, of every process; shows no value."""
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
    """Return what a number or a choice must be, in our words rather than pydantic's."""
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

"""Settings from the environment and `.env`, validated before anything is opened; one class for each process."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args

import dotenv
import pydantic
import pydantic_settings
import redis.connection
from pydantic import Field, SecretStr
from pydantic import fields as pydantic_fields

from shared import errors
from shared.asterisk import address_guard
from shared.call import ids
from shared.call.limits import Limits
from shared.call.steps import Step
from shared.process import sealing

_MINIMUM_KEY_LENGTH = 16


_HOST = r"(?:\[[^]/]*\]|[^][/?@:,]*)(?::[0-9]*)?"
#: libpq takes several hosts, and anything but a slash in a password.
_POSTGRES_URL = re.compile(rf"postgres(?:ql)?://(?:[^@/]*@)?{_HOST}(?:,{_HOST})*(?:[/?].*)?")
_LONE_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_UNUSABLE = "is not a usable URL: what is special in a password is %-encoded"


def _postgres(url: SecretStr) -> SecretStr:
    text = url.get_secret_value()
    if not text.startswith(("postgresql://", "postgres://")):
        raise ValueError("must begin with postgresql://")
    # What libpq says of any other would show a part of the password.
    if _POSTGRES_URL.fullmatch(text) is None or _LONE_PERCENT.search(text):
        raise ValueError(_UNUSABLE)
    return url


def _redis(url: SecretStr) -> SecretStr:
    text = url.get_secret_value()
    if not text.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("must begin with redis://, rediss:// or unix://")
    try:
        redis.connection.parse_url(text)  # type: ignore[no-untyped-call]  # the library's
    except ValueError:
        # Not chained: its text may show a part of the password.
        raise ValueError(_UNUSABLE) from None
    return url


_DatabaseUrl = Annotated[SecretStr, pydantic.AfterValidator(_postgres)]
_RedisUrl = Annotated[SecretStr, pydantic.AfterValidator(_redis)]
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

    redis_url: _RedisUrl = Field(description="Redis, a database used by nothing else: `redis://host:6379/0`.")
    secret_key: SecretStr = Field(
        description="Keys of at least 16 characters, comma-separated: the first seals secrets, any opens them."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The lowest level that is logged."
    )
    log_format: Literal["auto", "text", "json"] = Field(
        default="auto", description="The format of log lines; `auto`: `text` on a terminal, `json` elsewhere."
    )
    log_numbers: Literal["masked", "full"] = Field(
        default="masked", description="Whether log lines show telephone numbers, or only their last digits."
    )
    error_bytes: int = Field(
        default=2_048,
        ge=256,
        le=65_536,
        description="Maximum size in bytes that the details of a logged error or warning take in Redis, which keeps 200"
        " of each for a day for each process.",
    )
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
    metrics: Literal["on", "off"] = Field(
        default="on", description="`off` keeps no metrics, and serves neither these nor `/healthz` and `/readyz`."
    )
    metrics_host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="The address at which this process serves `/metrics`, `/healthz` and `/readyz`. They need no"
        " password: only Prometheus and the machine itself should reach it.",
    )
    metrics_port: int = Field(
        default=0,
        ge=0,
        le=65_535,
        description="The port there; 0 takes a free one, so that several processes of a machine never collide.",
    )
    metrics_connections: int = Field(
        default=1_000,
        ge=0,
        le=100_000,
        description="Maximum number of connections of which a process exports a series each; 0 for none.",
    )

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

    def secrets(self) -> tuple[str, ...]:
        """Return every secret of these settings, and what is derived from them; a URL with a password is one."""
        values = [getattr(self, name) for name in type(self).model_fields]
        given = [value.get_secret_value() for value in values if isinstance(value, SecretStr)]
        return (*given, *self.secret_keys, sealing.media_secret(self.secret_keys[0]))

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
    run_completion: Literal["auto", "ours", "platform"] = Field(
        default="auto",
        description="Whether we (`ours`) or the platform's API process complete the runs of connected calls; `auto`:"
        " the platform where its own migrations have made the tables, we in an installation without it.",
    )
    platform_layout: Literal["auto", "2026-02", "newest"] = Field(
        default="auto",
        description="The layout of the platform's tables; `auto`: what is found. A layout that this release does not"
        " serve is refused with a reason.",
    )
    platform_redis_url: SecretStr | None = Field(
        default=None,
        description="The database of Redis that the platform's API uses (its `REDIS_URL`), for the newest layout: there"
        " callers and the API's calls count each other, and the API finds the calls that it transfers. Its processes"
        " are told there of the runs that we end.",
    )
    platform_redis_seconds: float = Field(
        default=0.2,
        gt=0,
        le=2,
        description="Time-out for one request to it; a caller waits for one at most.",
    )
    platform_call_limit: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Whether callers are limited by the platform's `CONCURRENT_CALL_LIMIT`. `auto`: unless the"
        " platform's layout is 2026-02, which limits campaigns alone. `on` also takes slots in `PLATFORM_REDIS_URL`"
        " beside that layout.",
    )
    default_org_concurrency_limit: int = Field(
        default=10,
        ge=1,
        description="The platform's variable of this name, for the newest layout: the limit of an organization without"
        " `CONCURRENT_CALL_LIMIT`.",
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

    @pydantic.field_validator("platform_redis_url")
    @classmethod
    def _platform_redis(cls, url: SecretStr | None) -> SecretStr | None:
        return None if url is None or not url.get_secret_value() else _redis(url)

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
        " teardown, resync (with apps).",
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
    talk_detection: Literal["on", "off"] = Field(
        default="off",
        description="Whether Asterisk is asked, once a call is connected, to tell when caller and agent first send"
        " audio. The same for all workers, and only once no process of an earlier release runs.",
    )
    media_token: Literal["on", "off"] = Field(
        default="on", description="Whether the media URL carries a token that authenticates us to the agent."
    )
    media_token_secret: SecretStr | None = Field(
        default=None,
        description="The key that signs the media token, the agent's own. If none is set: derived from the first"
        " SECRET_KEY; beside the newest platform there is no token then.",
    )
    telephony_ws_token_secret: SecretStr | None = Field(
        default=None, description="The same by the platform's name for it; MEDIA_TOKEN_SECRET goes first."
    )

    quota: Literal["sql", "http", "none"] = Field(
        default="sql",
        description="The quota that calls are checked against: our limits (`sql`, see `arictl quota`), the platform's"
        " quota service (`http`), or none.",
    )
    platform_slots_unreachable: Literal["count", "refuse"] = Field(
        default="count",
        description="While `PLATFORM_REDIS_URL` gives no answer, callers are counted from our own calls alone"
        " (`count`), or refused with congestion (`refuse`).",
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
    quota_contract: Literal["auto", "2026-02", "oss", "hosted"] = Field(
        default="auto",
        description="What the quota service is asked with `QUOTA=http`: for the credits of the user's keys (`2026-02`),"
        " or about the run, by the organization's keys (`oss`) or account (`hosted`). `auto`: by the layout of the"
        " platform's tables; in the newest `hosted` with `MPS_SECRET_KEY`, else `oss`.",
    )
    quota_unreachable: Literal["platform", "refuse", "allow"] = Field(
        default="platform",
        description="Whether calls are refused or allowed while the quota service gives no usable answer. `platform`:"
        " refused, except that in the newest layout a service that is not reached lets a call through that needs no"
        " correlation id.",
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
        """The key that signs media tokens; None if they are off, or none is set."""
        given = self.media_token_secret or self.telephony_ws_token_secret
        if self.media_token == "off" or given is None:  # noqa: S105 - a switch, not a secret
            return None
        return given.get_secret_value()

    @property
    def derived_token_secret(self) -> str | None:
        """The key that signs them where none is set, for an agent that we tell it to; None if they are off."""
        return sealing.media_secret(self.secret_keys[0]) if self.media_token == "on" else None  # noqa: S105 - a switch


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
    deactivate_lasting_seconds: float = Field(
        default=60.0,
        ge=60,
        le=86_400,
        description="A configuration whose Asterisk has answered 401, 403 or 404 for this time, five times at least, is"
        " deactivated at the platform (newest layout).",
    )
    deactivate_failing_seconds: float = Field(
        default=3600.0,
        ge=0,
        le=604_800,
        description="The same for one whose event socket has failed without a break for this time; 0 for never.",
    )
    resync_seconds: float = Field(default=15.0, gt=0, le=300, description="Interval of a connection's resyncs.")
    lease_seconds: float = Field(default=2.0, gt=0, le=60, description="Duration of the leader's lease.")
    removal_drain_seconds: float = Field(
        default=14_400.0, ge=0, description="Calls of a removed configuration may continue for this time."
    )
    completed_runs_seconds: float = Field(
        default=5.0, gt=0, le=300, description="Interval at which connected calls with completed runs are looked for."
    )
    platform_slots_seconds: float = Field(
        default=5.0,
        gt=0,
        le=60,
        description="Interval at which the slots in `PLATFORM_REDIS_URL` are compared with the calls.",
    )
    retention_days: int = Field(
        default=90,
        ge=0,
        le=36_500,
        description="Ended calls and their timelines are kept for this many days: 32 or more; 0 keeps them for ever.",
    )
    audit_days: int = Field(
        default=400,
        ge=0,
        le=36_500,
        description="Rows of the audit are kept for this many days: 30 or more; 0 keeps them for ever.",
    )
    look_seconds: float = Field(
        default=5.0,
        gt=0,
        le=60,
        description="Interval at which calls and queues are counted for the metrics of the whole installation.",
    )
    sweep_batch: int = Field(
        default=500, ge=1, le=10_000, description="Maximum number of overdue calls that one sweep dispatches again."
    )

    outbox_hours: float = Field(
        default=24.0,
        ge=1,
        le=720,
        description="A run that we ended, and of which the platform could not be told for this time, is given up.",
    )

    @pydantic.field_validator("retention_days")
    @classmethod
    def _whole_months(cls, days: int) -> int:
        # The quota counts the minutes of a month from its calls.
        if 0 < days < 32:
            raise ValueError("must be 0, or at least 32: the quota counts this month's minutes from its calls")
        return days

    @pydantic.field_validator("audit_days")
    @classmethod
    def _kept(cls, days: int) -> int:
        # Postgres refuses to delete a younger row.
        if 0 < days < 30:
            raise ValueError("must be 0, or at least 30: Postgres deletes no younger row of the audit")
        return days


#: Field → what its URL must have, and then what it may have.
_PLACEHOLDERS = {"console_trace_url": ("{trace_id}",), "console_run_url": ("{run_id}", "{workflow_id}")}


class Web(WithDatabase):
    """The settings of the console's process."""

    console_host: str = Field(
        default="127.0.0.1",
        description="The address that the console listens on. Another one than loopback needs `CONSOLE_URL` and"
        " `CONSOLE_PROXIES`: passwords never cross a network without TLS.",
    )
    console_port: int = Field(
        default=8090, ge=0, le=65_535, description="Its port; 0 takes a free one, which the log tells."
    )
    console_url: str = Field(
        default="",
        description="The console's address as browsers have it, behind a proxy that speaks TLS:"
        " `https://console.example.net`. Without it only requests for a loopback name are answered. `http://localhost:8090`"
        " is for a container whose port is published on the host's loopback.",
    )
    console_proxies: str = Field(
        default="",
        validate_default=True,
        description="Networks of the proxies in front, comma-separated: from them `X-Forwarded-For` and"
        " `X-Forwarded-Proto` are believed. With a `CONSOLE_URL` of loopback, the addresses that a published port is"
        " forwarded from, such as the gateway of the container's network: others are refused.",
    )
    console_idle_seconds: float = Field(
        default=3_600.0,
        ge=60,
        le=86_400,
        description="A session that asks for nothing for this time ends; a page that is looked at asks each second.",
    )
    console_session_seconds: float = Field(
        default=43_200.0, ge=300, le=604_800, description="A session ends after this time, whatever it does."
    )
    console_sign_in_attempts: int = Field(
        default=5,
        ge=1,
        le=100,
        description="Wrong passwords in a row after which a user's name is locked, and four times as many for an"
        " address.",
    )
    console_lock_seconds: float = Field(
        default=300.0,
        ge=1,
        le=86_400,
        description="Duration of such a lock, and the time after which a failure counts no more.",
    )
    console_streams: int = Field(
        default=200, ge=1, le=5_000, description="Maximum number of pages that are kept current at the same time."
    )
    console_user_streams: int = Field(
        default=60, ge=1, le=5_000, description="And of one user, in all of the user's browsers together."
    )
    console_sample_seconds: float = Field(
        default=1.0, ge=0.5, le=60, description="Interval of the overview's samples, while a page is looked at."
    )
    console_trace_url: str = Field(
        default="",
        description="Where a call's trace is looked at, which its page links then: such as"
        " `https://jaeger.example.net/trace/{trace_id}`.",
    )
    console_run_url: str = Field(
        default="",
        description="Where the platform shows a call's run, which its page links then: such as"
        " `https://app.example.net/workflow/{workflow_id}/run/{run_id}`.",
    )

    @pydantic.field_validator("console_trace_url", "console_run_url")
    @classmethod
    def _is_template(cls, url: str, info: pydantic.ValidationInfo) -> str:
        required, *optional = _PLACEHOLDERS[info.field_name or ""]
        match = re.fullmatch(r"https?://[^\s/?#@{}]+([/?#]\S*)", url)
        filled = match[1] if match is not None else ""
        for placeholder in (required, *optional):
            filled = filled.replace(placeholder, "")
        if url and (match is None or required not in match[1] or "{" in filled or "}" in filled):
            known = " and ".join((required, *optional))
            raise ValueError(f"must be http(s)://host[:port]/… without user, with {required}: it replaces {known}")
        return url

    @pydantic.field_validator("console_url")
    @classmethod
    def _is_https(cls, url: str) -> str:
        if url and not re.fullmatch(r"(https://[A-Za-z0-9.-]+|http://(localhost|127\.0\.0\.1))(:\d{1,5})?/?", url):
            raise ValueError("must be https://host[:port], or http://localhost[:port], without a path")
        return url.rstrip("/")

    @pydantic.field_validator("console_proxies")
    @classmethod
    def _is_not_open(cls, text: str, info: pydantic.ValidationInfo) -> str:
        proxies = address_guard.parse_networks(text)
        host, url = info.data.get("console_host", ""), info.data.get("console_url", "")
        if not _is_loopback(host) and not (url and proxies):
            raise ValueError(
                f"CONSOLE_HOST={host} is not loopback: put a proxy that speaks TLS in front, and name it here and in"
                " CONSOLE_URL"
            )
        if url.startswith("http://") and any(network.num_addresses > 1 for network in proxies):
            raise ValueError(f"without TLS (CONSOLE_URL={url}) single addresses are answered, no networks")
        return text


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Operator(WithDatabase):
    """The settings of the arictl commands that act on calls, as a process would."""


class RedisTool(Environment):
    """The settings of the arictl commands that need Redis alone."""

    redis_url: _RedisUrl = Field(description="Redis.")


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
    run_completion: str = "auto"
    quota: str = "sql"
    mps_api_url: str = ""
    media_token_secret: SecretStr = SecretStr("")
    telephony_ws_token_secret: SecretStr = SecretStr("")
    platform_redis_url: SecretStr | None = None


_S = TypeVar("_S", bound=Environment)


def read_opentelemetry() -> None:
    """Put the OTEL_* variables of `.env` into the environment, where OpenTelemetry reads them."""
    for name, value in dotenv.dotenv_values(".env").items():
        if name.startswith("OTEL_") and value is not None:
            os.environ.setdefault(name, value)


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
    for kind in (Listener, Worker, Scheduler, Web):
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

"""Settings: what is wrong is named, no value is ever shown."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

from shared import errors
from shared.call.limits import Limits
from shared.process import sealing, settings

GOOD = {
    "REDIS_URL": "redis://:hunter2@redis:6379/0",
    "DATABASE_URL": "postgresql://voiceai:hunter2@postgres/voiceai",
    "SECRET_KEY": "hunter2 hunter2 hunter2",
}
KINDS: list[type[settings.Base]] = [settings.Listener, settings.Worker, settings.Scheduler, settings.Web]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Nothing set but what works, and no `.env` of a developer's."""
    monkeypatch.chdir(tmp_path)
    for kind in KINDS:
        for name in kind.model_fields:
            monkeypatch.delenv(name.upper(), raising=False)
    for name, value in GOOD.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:p%40ss#?x@h1:5432,h2,[::1]:5433/db?target_session_attrs=any",
        "postgresql:///db?host=/run/postgresql",
        "postgres://h",
        "postgresql://?host=h&user=u",
    ],
)
def test_what_libpq_reads_is_a_database_s_url(environment: pytest.MonkeyPatch, url: str) -> None:
    environment.setenv("DATABASE_URL", url)
    assert settings.load(settings.Tool).database_url.get_secret_value() == url


@pytest.mark.parametrize("kind", KINDS)
def test_three_variables_are_enough(kind: type[settings.Base]) -> None:
    config = settings.load(kind)
    assert config.secret_keys == ("hunter2 hunter2 hunter2",)
    assert "hunter2" not in repr(config)


def test_the_listener_needs_no_database(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("DATABASE_URL")
    assert settings.load(settings.Listener).redis_url.get_secret_value() == GOOD["REDIS_URL"]


def test_the_tool_needs_a_database_and_nothing_else(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("REDIS_URL")
    environment.delenv("SECRET_KEY")
    assert "hunter2" not in repr(settings.load(settings.Tool))
    environment.delenv("DATABASE_URL")
    with pytest.raises(errors.InvalidSettings, match="DATABASE_URL: is not set"):
        settings.load(settings.Tool)


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("REDIS_URL", None, "is not set"),
        ("DATABASE_URL", None, "is not set"),
        ("SECRET_KEY", None, "is not set"),
        ("REDIS_URL", "hunter2:6379", "must begin with redis://"),
        ("REDIS_URL", "http://hunter2", "must begin with redis://"),
        ("REDIS_URL", "redis://:hunter2/x@redis:6379/0", "is not a usable URL"),
        ("REDIS_URL", "redis://[hunter2@redis:6379/0", "is not a usable URL"),
        ("DATABASE_URL", "mysql://x:hunter2@y/z", "must begin with postgresql://"),
        ("DATABASE_URL", "postgresql://x:hunter2/a@y/z", "is not a usable URL"),
        ("DATABASE_URL", "postgresql://x:hunter2%@y/z", "is not a usable URL"),
        ("SECRET_KEY", "hunter2", "each key needs at least 16 characters"),
        ("SECRET_KEY", "hunter2 hunter2 hunter2,hunter2", "each key needs at least 16 characters"),
        ("SECRET_KEY", "hunter2 hunter2 hunter2,", "each key needs at least 16 characters"),
        ("SECRET_KEY", "hunter2         ", "each key needs at least 16 characters"),
        ("ID_PREFIX", "", "must be 2 to 16"),
        ("ID_PREFIX", "aip", "end with -"),
        ("ID_PREFIX", "-", "must be 2 to 16"),
        ("ID_PREFIX", "1a-", "begin with a letter"),
        ("ID_PREFIX", "Aip-", "must be 2 to 16"),
        ("ID_PREFIX", "a/b-", "must be 2 to 16"),
        ("ID_PREFIX", "a%b-", "must be 2 to 16"),
        ("ID_PREFIX", "aip-\n", "must be 2 to 16"),
        ("ID_PREFIX", "a" * 16 + "-", "must be 2 to 16"),
        ("ID_PREFIX", "äip-", "must be 2 to 16"),
        ("LOG_LEVEL", "hunter2", "must be one of debug, info, warning, error; the default is info"),
        ("READ_SECONDS", "hunter2", "must be a number, at least 3 and at most 60; the default is 4"),
        ("READ_SECONDS", "0.5", "must be a number, at least 3 and at most 60; the default is 4"),
        ("READ_SECONDS", "", "must be a number, at least 3 and at most 60; the default is 4"),
        ("CALL_SECONDS", "inf", "must be a number, more than 0; the default is 14400"),
        ("STALE_START_SECONDS", "nan", "must be a number, more than 0 and at most 60; the default is 10"),
        ("WORKER_THREADS", "0", "must be a whole number, at least 1 and at most 64; the default is 8"),
        ("WORKER_THREADS", "2.5", "must be a whole number, at least 1 and at most 64; the default is 8"),
        ("WORKER_QUEUES", "admission,medai", "no such queue: medai"),
        ("ASTERISK_REQUESTS", "61", "must be a whole number, at least 2 and at most 60"),
        ("MEDIA_TOKEN", "false", "must be one of on, off"),
        ("RUN_COMPLETION", "hunter2", "must be one of auto, ours, platform"),
        ("QUOTA", "hunter2", "must be one of sql, http, none"),
        ("QUOTA_CONTRACT", "hunter2", "must be one of auto, 2026-02, oss, hosted"),
        ("QUOTA_UNREACHABLE", "hunter2", "must be one of platform, refuse, allow"),
        ("CONCURRENT_CALLS", "-1", "must be a whole number, at least 0; not set by default"),
        ("CONCURRENT_CALLS", "hunter2", "must be a whole number, at least 0; not set by default"),
        ("MPS_SECRET_KEY", "hunter2\nX-Admin: 1", "printable ASCII"),
        ("MPS_SECRET_KEY", "hunter2 ü", "printable ASCII"),
        ("MPS_SECRET_KEY", "", "printable ASCII"),
    ],
)
def test_a_wrong_variable_is_named_and_its_value_not_shown(
    environment: pytest.MonkeyPatch, name: str, value: str | None, complaint: str
) -> None:
    if value is None:
        environment.delenv(name)
    else:
        environment.setenv(name, value)
    with pytest.raises(errors.InvalidSettings) as caught:
        settings.load(settings.Worker)
    first, line = str(caught.value).splitlines()
    assert first == "these settings are missing or wrong:"
    assert line.startswith(f"  {name}: ")
    assert complaint in line
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_everything_wrong_is_told_at_once(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("DATABASE_URL")
    environment.setenv("SECRET_KEY", "short")
    environment.setenv("CALL_SECONDS", "0")
    with pytest.raises(errors.InvalidSettings) as caught:
        settings.load(settings.Worker)
    names = [line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]]
    assert sorted(names) == ["CALL_SECONDS", "DATABASE_URL", "SECRET_KEY"]


def test_several_keys_the_first_seals(environment: pytest.MonkeyPatch) -> None:
    old, new = "the old key of ours", "the new key of ours"
    environment.setenv("SECRET_KEY", f"{new}, {old}")
    config = settings.load(settings.Worker)
    assert config.secret_keys == (new, old)
    assert sealing.Sealer((new,)).open(config.sealer().seal("x")) == "x"
    assert config.sealer().open(sealing.Sealer((old,)).seal("y")) == "y"


@pytest.mark.parametrize("prefix", ["a-", "aip-", "aip-2-", "a" * 15 + "-"])
def test_prefixes_of_ours(environment: pytest.MonkeyPatch, prefix: str) -> None:
    environment.setenv("ID_PREFIX", prefix)
    assert settings.load(settings.Worker).id_prefix == prefix


@pytest.mark.parametrize(
    ("text", "queues"), [("", set()), ("media", {"media"}), (" admission, resync ,", {"admission", "resync"})]
)
def test_queues_to_serve(environment: pytest.MonkeyPatch, text: str, queues: set[str]) -> None:
    environment.setenv("WORKER_QUEUES", text)
    assert settings.load(settings.Worker).queues == queues


def test_media_tokens_are_on_unless_switched_off(environment: pytest.MonkeyPatch) -> None:
    assert settings.load(settings.Worker).token_secret is None
    assert settings.load(settings.Worker).derived_token_secret == sealing.media_secret(GOOD["SECRET_KEY"])
    environment.setenv("TELEPHONY_WS_TOKEN_SECRET", "the platform's name for it")
    assert settings.load(settings.Worker).token_secret == "the platform's name for it"
    environment.setenv("MEDIA_TOKEN_SECRET", "the agent's own")
    assert settings.load(settings.Worker).token_secret == "the agent's own"
    environment.setenv("MEDIA_TOKEN", "off")
    loaded = settings.load(settings.Worker)
    assert (loaded.token_secret, loaded.derived_token_secret) == (None, None)


@pytest.mark.parametrize(
    "url",
    [
        None, "", "hunter2.example", "ftp://hunter2.example", "https://", "https:///x", "https://u:hunter2@mps.example",
        "https://mps.example/?key=hunter2", "https://mps.example/#hunter2", "https://mps.example/hunter2 x",
        "https://mps.example\n",
    ],
)  # fmt: skip
def test_a_quota_service_must_be_named(environment: pytest.MonkeyPatch, url: str | None) -> None:
    environment.setenv("QUOTA", "http")
    if url is not None:
        environment.setenv("MPS_API_URL", url)
    with pytest.raises(errors.InvalidSettings, match="MPS_API_URL: QUOTA=http needs http") as caught:
        settings.load(settings.Worker)
    assert "hunter2" not in str(caught.value)
    # Without it, nothing is asked of the setting.
    environment.setenv("QUOTA", "none")
    settings.load(settings.Worker)


@pytest.mark.parametrize("url", ["http://mps", "https://mps.example:8443", "https://mps.example/prefix/"])
def test_quota_services(environment: pytest.MonkeyPatch, url: str) -> None:
    environment.setenv("QUOTA", "http")
    environment.setenv("MPS_API_URL", url)
    config = settings.load(settings.Worker)
    assert (config.mps_api_url, config.mps_secret_key, config.quota_unreachable) == (url, None, "platform")


def test_nothing_is_limited_unless_told(environment: pytest.MonkeyPatch) -> None:
    config = settings.load(settings.Worker)
    assert (config.quota, config.concurrent_calls) == ("sql", None)
    environment.setenv("CONCURRENT_CALLS", "0")
    assert settings.load(settings.Worker).concurrent_calls == 0


def test_a_heartbeat_may_be_late_twice(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("HEARTBEAT_SECONDS", "1")
    with pytest.raises(errors.InvalidSettings, match=r"HEARTBEAT_SECONDS: .*a third of LISTENER_TIMEOUT_SECONDS"):
        settings.load(settings.Listener)
    environment.setenv("LISTENER_TIMEOUT_SECONDS", "3")
    assert settings.load(settings.Listener).heartbeat_seconds == 1


def test_limits_are_as_set(environment: pytest.MonkeyPatch) -> None:
    defaults = settings.load(settings.Worker).limits()
    assert defaults == Limits()
    names = ("connect_seconds", "read_seconds", "queue_seconds", "media_check_seconds", "call_seconds")
    for number, name in enumerate((*names, "stale_start_seconds"), 10):
        environment.setenv(name.upper(), str(number))
    limits = settings.load(settings.Scheduler).limits()
    assert [getattr(limits, name) for name in (*names, "stale_start_seconds")] == [10, 11, 12, 13, 14, 15]


def test_a_process_has_a_name(environment: pytest.MonkeyPatch) -> None:
    assert settings.load(settings.Worker).name
    environment.setenv("PROCESS_NAME", "worker-1")
    assert settings.load(settings.Worker).name == "worker-1"


def test_dot_env_is_read_and_the_environment_wins(environment: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("ID_PREFIX=dot-\nLOG_LEVEL=debug\nUNKNOWN=x\n")
    environment.setenv("LOG_LEVEL", "error")
    config = settings.load(settings.Worker)
    assert (config.id_prefix, config.log_level) == ("dot-", "error")


@pytest.mark.parametrize(("days", "is_right"), [("0", True), ("1", False), ("31", False), ("32", True), ("-1", False)])
def test_calls_are_kept_for_a_month_at_least_or_for_ever(
    environment: pytest.MonkeyPatch, days: str, is_right: bool
) -> None:
    environment.setenv("RETENTION_DAYS", days)
    if is_right:
        assert settings.load(settings.Scheduler).retention_days == int(days)
    else:
        with pytest.raises(errors.InvalidSettings, match="RETENTION_DAYS: must be"):
            settings.load(settings.Scheduler)

"""The schema `ari`: connections, calls, attempts, timeline, quotas, leases."""

from __future__ import annotations

from alembic import op

revision = "0001_schema"
down_revision = None

_SCHEMA = """
CREATE TABLE ari.connections (
    connection_id   integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- The platform's configuration row this comes from.
    source_id       integer NOT NULL UNIQUE,
    organization_id integer NOT NULL,
    state           text NOT NULL CHECK (state IN ('active', 'refused', 'removed')),
    reason          text NOT NULL DEFAULT '',
    version         integer NOT NULL DEFAULT 0,
    changed_at      timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- What an event socket and the requests of a call need; never changed once written. A call pins the one it came in by.
CREATE TABLE ari.connection_versions (
    connection_id   integer NOT NULL REFERENCES ari.connections,
    version         integer NOT NULL,
    endpoint        text NOT NULL,
    app             text NOT NULL,
    ari_user        text NOT NULL,
    sealed_password text NOT NULL,
    -- The only certificates to trust for the endpoint, in PEM; NULL for the system's authorities.
    ca_bundle       text,
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Set when a newer version or a removal took its place; it serves its calls until they have ended.
    superseded_at   timestamptz,
    -- Set when its socket is no longer wanted.
    retired_at      timestamptz,
    -- The listener its event socket is assigned to, and the epoch; only the leading scheduler raises the epoch.
    listener_id     text,
    epoch           integer NOT NULL DEFAULT 0,
    -- When epoch was last raised.
    assigned_at     timestamptz,
    -- During a hand-off: the listener that keeps the socket open until listener_id has opened its own, and its epoch.
    previous_listener_id text,
    previous_epoch  integer,
    -- As its listener last reported.
    socket_state    text NOT NULL DEFAULT 'unassigned',
    socket_since    timestamptz,
    last_event_at   timestamptz,
    reconnects      integer NOT NULL DEFAULT 0,
    -- What is wrong now, and what was last wrong.
    last_error      text NOT NULL DEFAULT '',
    past_error      text NOT NULL DEFAULT '',
    past_error_at   timestamptz,
    -- When its Asterisk first accepted the credentials.
    accepted_at     timestamptz,
    -- When a competing client took the app; how many times in a row it was reclaimed; since when it is left alone.
    preempted_at    timestamptz,
    reclaims        integer NOT NULL DEFAULT 0,
    parked_at       timestamptz,
    PRIMARY KEY (connection_id, version)
);
CREATE INDEX connection_versions_wanted ON ari.connection_versions (connection_id) WHERE retired_at IS NULL;

CREATE TABLE ari.calls (
    call_id            uuid PRIMARY KEY,
    connection_id      integer NOT NULL,
    connection_version integer NOT NULL,
    organization_id    integer NOT NULL,
    channel_id         text NOT NULL,
    channel_created    text NOT NULL,
    entry              integer NOT NULL,
    direction          text NOT NULL,
    state              text NOT NULL,
    received_at        timestamptz NOT NULL,
    state_since        timestamptz NOT NULL,
    deadline_at        timestamptz,
    -- Raised by every write, claims included: a write names the value it has read (compare-and-set).
    lock_version       integer NOT NULL,
    step_retries       integer NOT NULL,
    channel_name       text NOT NULL,
    caller_number      text NOT NULL,
    called_number      text NOT NULL,
    args               text[] NOT NULL,
    entered_stamp      text,
    left_stamp         text,
    workflow_id        integer,
    user_id            integer,
    media_client       text,
    workflow_run_id    integer,
    call_seconds       real,
    continue_in_dialplan boolean NOT NULL,
    -- Names the request to originate; NULL for a leg that entered by itself.
    request_id         text,
    dial_endpoint      text,
    ring_seconds       real,
    dial_status        text,
    attempt            integer NOT NULL,
    attempt_in_doubt_until timestamptz,
    earlier_in_doubt_until timestamptz,
    legs_created       boolean NOT NULL,
    media_ready        boolean NOT NULL,
    caller_left        boolean NOT NULL,
    connected_at       timestamptz,
    ending_at          timestamptz,
    ended_at           timestamptz,
    outcome            text,
    reason             text,
    hangup_cause       integer,
    -- The step at work on the call. No other step starts before claim_until.
    claim_owner        text,
    claim_step         text,
    claim_until        timestamptz,
    FOREIGN KEY (connection_id, connection_version) REFERENCES ari.connection_versions
);
CREATE UNIQUE INDEX calls_identity ON ari.calls (connection_id, channel_id, channel_created, entry);
CREATE UNIQUE INDEX calls_run ON ari.calls (workflow_run_id) WHERE workflow_run_id IS NOT NULL;
CREATE UNIQUE INDEX calls_request ON ari.calls (connection_id, request_id) WHERE request_id IS NOT NULL;
CREATE INDEX calls_due ON ari.calls (deadline_at) WHERE state <> 'ended';
CREATE INDEX calls_open ON ari.calls (connection_id, connection_version) WHERE state <> 'ended';
CREATE INDEX calls_by_organization ON ari.calls (organization_id, received_at DESC);
CREATE INDEX calls_by_time ON ari.calls (received_at DESC);
-- Slots in use, and seconds talked in a month.
CREATE INDEX calls_slots ON ari.calls (organization_id) WHERE state <> 'ended';
CREATE INDEX calls_talk ON ari.calls (organization_id, ending_at) WHERE connected_at IS NOT NULL;

-- Every id a call may have made on its Asterisk, written before the request that makes it.
CREATE TABLE ari.attempts (
    call_id    uuid NOT NULL REFERENCES ari.calls ON DELETE CASCADE,
    attempt    integer NOT NULL,
    media_id   text NOT NULL,
    bridge_id  text NOT NULL,
    begun_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    in_doubt_until timestamptz NOT NULL,
    outcome    text,
    outcome_at timestamptz,
    PRIMARY KEY (call_id, attempt)
);

-- What happened, who did it, how long it took and why: transitions, requests, refusals, dead letters.
CREATE TABLE ari.timeline (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at            timestamptz NOT NULL DEFAULT clock_timestamp(),
    call_id       uuid,
    connection_id integer,
    kind          text NOT NULL CHECK (kind IN ('transition', 'fact', 'request', 'refusal', 'dead-letter', 'note')),
    name          text NOT NULL,
    state_from    text,
    state_to      text,
    attempt       integer,
    took_ms       real,
    who           text NOT NULL,
    detail        text NOT NULL DEFAULT ''
);
CREATE INDEX timeline_of_call ON ari.timeline (call_id, id);
CREATE INDEX timeline_of_connection ON ari.timeline (connection_id, id) WHERE call_id IS NULL;

-- An organization's limits; NULL is no limit.
CREATE TABLE ari.quotas (
    organization_id   integer PRIMARY KEY,
    blocked           boolean NOT NULL DEFAULT false,
    concurrent_calls  integer CHECK (concurrent_calls >= 0),
    minutes_per_month integer CHECK (minutes_per_month >= 0),
    changed_at        timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE ari.leases (
    name       text PRIMARY KEY,
    holder     text NOT NULL,
    term       bigint NOT NULL,
    expires_at timestamptz NOT NULL
);
"""


def upgrade() -> None:
    op.execute(_SCHEMA)


def downgrade() -> None:
    op.execute(
        "DROP TABLE ari.quotas, ari.timeline, ari.attempts, ari.calls, ari.connection_versions,"
        " ari.connections, ari.leases"
    )

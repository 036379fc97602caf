"""The schema `ari`: connections, calls, attempts, timeline, leases."""

from __future__ import annotations

from alembic import op

revision = "0001"
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
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Set when a newer version or a removal took its place; it drains until its calls have ended.
    superseded_at   timestamptz,
    -- Set when its socket is no longer wanted.
    retired_at      timestamptz,
    -- Who holds its event socket, under which epoch; raised by the leading scheduler only.
    listener_id     text,
    epoch           integer NOT NULL DEFAULT 0,
    -- As its listener last reported.
    socket_state    text NOT NULL DEFAULT 'unassigned',
    socket_since    timestamptz,
    last_event_at   timestamptz,
    reconnects      integer NOT NULL DEFAULT 0,
    last_error      text NOT NULL DEFAULT '',
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
    version            integer NOT NULL,
    drives             integer NOT NULL,
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
    attempt            integer NOT NULL,
    attempt_open_until timestamptz,
    unsettled_until    timestamptz,
    legs_created       boolean NOT NULL,
    media_ready        boolean NOT NULL,
    caller_left        boolean NOT NULL,
    connected_at       timestamptz,
    ending_at          timestamptz,
    ended_at           timestamptz,
    outcome            text,
    reason             text,
    hangup_cause       integer,
    -- In whose hands it is: a step at work. Nobody else starts one before claim_until.
    claim_owner        text,
    claim_step         text,
    claim_until        timestamptz,
    FOREIGN KEY (connection_id, connection_version) REFERENCES ari.connection_versions
);
CREATE UNIQUE INDEX calls_identity ON ari.calls (connection_id, channel_id, channel_created, entry);
CREATE UNIQUE INDEX calls_run ON ari.calls (workflow_run_id) WHERE workflow_run_id IS NOT NULL;
CREATE INDEX calls_due ON ari.calls (deadline_at) WHERE state <> 'ended';
CREATE INDEX calls_open ON ari.calls (connection_id, connection_version) WHERE state <> 'ended';
CREATE INDEX calls_by_organization ON ari.calls (organization_id, received_at DESC);
CREATE INDEX calls_by_time ON ari.calls (received_at DESC);

-- Every id a call may have made on its Asterisk, written before the request that makes it.
CREATE TABLE ari.attempts (
    call_id    uuid NOT NULL REFERENCES ari.calls ON DELETE CASCADE,
    attempt    integer NOT NULL,
    media_id   text NOT NULL,
    bridge_id  text NOT NULL,
    begun_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    open_until timestamptz NOT NULL,
    outcome    text,
    settled_at timestamptz,
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
    op.execute("DROP TABLE ari.timeline, ari.attempts, ari.calls, ari.connection_versions, ari.connections, ari.leases")

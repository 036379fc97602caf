"""The platform's tables (Dograh, layout 2026-02), only where there are none: for development and stand-alone use.

Where the platform's own tables exist they are never altered.
"""

from __future__ import annotations

import sqlalchemy
from alembic import op

revision = "0002_platform"
down_revision = "0001_schema"

_TABLES = (
    "organizations",
    "organization_configurations",
    "users",
    "user_configurations",
    "workflows",
    "workflow_definitions",
    "workflow_runs",
)

#: As strict as the platform's own. Databases that an earlier release made keep the laxer ones that it made.
_SCHEMA = """
CREATE TYPE quota_type AS ENUM ('monthly', 'annual');
CREATE TYPE workflow_status AS ENUM ('active', 'archived');
CREATE TYPE workflow_run_mode AS ENUM ('ari', 'twilio', 'vonage', 'vobiz', 'cloudonix', 'webrtc', 'smallwebrtc',
                                       'stasis', 'VOICE', 'CHAT');
CREATE TYPE workflow_call_type AS ENUM ('inbound', 'outbound');
CREATE TYPE workflow_run_state AS ENUM ('initialized', 'running', 'completed');
CREATE TYPE storage_backend AS ENUM ('s3', 'minio');

CREATE TABLE organizations (
    id                   serial PRIMARY KEY,
    provider_id          varchar NOT NULL UNIQUE,
    created_at           timestamptz,
    quota_type           quota_type NOT NULL DEFAULT 'monthly',
    quota_dograh_tokens  integer NOT NULL DEFAULT 0,
    quota_reset_day      integer NOT NULL DEFAULT 1,
    quota_start_date     timestamptz,
    quota_enabled        boolean NOT NULL DEFAULT false,
    price_per_second_usd double precision
);
CREATE TABLE organization_configurations (
    id              serial PRIMARY KEY,
    organization_id integer NOT NULL REFERENCES organizations ON DELETE CASCADE,
    key             varchar NOT NULL,
    value           json NOT NULL,
    created_at      timestamptz,
    updated_at      timestamptz,
    UNIQUE (organization_id, key)
);
CREATE TABLE users (
    id                       serial PRIMARY KEY,
    provider_id              varchar NOT NULL UNIQUE,
    created_at               timestamptz,
    is_superuser             boolean,
    selected_organization_id integer REFERENCES organizations
);
CREATE TABLE user_configurations (
    id                serial PRIMARY KEY,
    user_id           integer REFERENCES users,
    configuration     json NOT NULL,
    last_validated_at timestamptz
);
CREATE TABLE workflows (
    id                         serial PRIMARY KEY,
    name                       varchar NOT NULL,
    workflow_definition        json NOT NULL,
    created_at                 timestamptz,
    user_id                    integer REFERENCES users,
    template_context_variables json NOT NULL,
    call_disposition_codes     json NOT NULL,
    organization_id            integer REFERENCES organizations,
    status                     workflow_status NOT NULL DEFAULT 'active',
    workflow_configurations    json NOT NULL DEFAULT '{}'
);
CREATE TABLE workflow_definitions (
    id            serial PRIMARY KEY,
    workflow_hash varchar NOT NULL,
    workflow_json json NOT NULL,
    created_at    timestamptz,
    workflow_id   integer REFERENCES workflows,
    is_current    boolean NOT NULL DEFAULT false,
    UNIQUE (workflow_hash, workflow_id)
);
CREATE TABLE workflow_runs (
    id                  serial PRIMARY KEY,
    name                varchar NOT NULL,
    workflow_id         integer NOT NULL REFERENCES workflows,
    mode                workflow_run_mode NOT NULL,
    created_at          timestamptz,
    is_completed        boolean,
    recording_url       varchar,
    transcript_url      varchar,
    usage_info          json NOT NULL,
    cost_info           json NOT NULL,
    initial_context     json NOT NULL,
    gathered_context    json NOT NULL,
    definition_id       integer REFERENCES workflow_definitions,
    annotations         json NOT NULL,
    campaign_id         integer,
    logs                json NOT NULL DEFAULT '{}',
    queued_run_id       integer,
    storage_backend     storage_backend NOT NULL DEFAULT 's3',
    state               workflow_run_state NOT NULL DEFAULT 'initialized',
    call_type           workflow_call_type NOT NULL DEFAULT 'outbound',
    public_access_token varchar(36)
);
CREATE INDEX workflow_runs_workflow ON workflow_runs (workflow_id);
CREATE INDEX idx_workflow_runs_call_id ON workflow_runs ((gathered_context ->> 'call_id'))
    WHERE gathered_context ->> 'call_id' IS NOT NULL;
"""


def upgrade() -> None:
    inspector = sqlalchemy.inspect(op.get_bind())
    if not any(inspector.has_table(table) for table in _TABLES):
        op.execute(_SCHEMA)


def downgrade() -> None:
    """Leaves the platform's tables alone: what is in them is not ours."""

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

_SCHEMA = """
CREATE TYPE quota_type AS ENUM ('monthly', 'annual');
CREATE TYPE workflow_status AS ENUM ('active', 'archived');
CREATE TYPE workflow_run_mode AS ENUM ('ari', 'twilio', 'vonage', 'vobiz', 'cloudonix', 'stasis', 'webrtc',
                                       'smallwebrtc', 'textchat', 'VOICE', 'CHAT');
CREATE TYPE workflow_call_type AS ENUM ('inbound', 'outbound');
CREATE TYPE workflow_run_state AS ENUM ('initialized', 'running', 'completed');
CREATE TYPE storage_backend AS ENUM ('s3', 'minio');

CREATE TABLE organizations (
    id                  serial PRIMARY KEY,
    provider_id         varchar NOT NULL UNIQUE,
    created_at          timestamptz,
    quota_type          quota_type NOT NULL DEFAULT 'monthly',
    quota_dograh_tokens integer NOT NULL DEFAULT 0,
    quota_reset_day     integer NOT NULL DEFAULT 1,
    quota_enabled       boolean NOT NULL DEFAULT false
);
CREATE TABLE organization_configurations (
    id              serial PRIMARY KEY,
    organization_id integer NOT NULL REFERENCES organizations,
    key             varchar NOT NULL,
    value           json NOT NULL,
    created_at      timestamptz,
    updated_at      timestamptz,
    UNIQUE (organization_id, key)
);
CREATE TABLE users (
    id                       serial PRIMARY KEY,
    provider_id              varchar NOT NULL UNIQUE,
    selected_organization_id integer REFERENCES organizations,
    is_superuser             boolean DEFAULT false,
    created_at               timestamptz
);
CREATE TABLE user_configurations (
    id            serial PRIMARY KEY,
    user_id       integer NOT NULL REFERENCES users,
    configuration json NOT NULL
);
CREATE TABLE workflows (
    id                         serial PRIMARY KEY,
    name                       varchar NOT NULL,
    user_id                    integer REFERENCES users,
    organization_id            integer REFERENCES organizations,
    status                     workflow_status NOT NULL DEFAULT 'active',
    workflow_definition        json NOT NULL,
    template_context_variables json NOT NULL,
    call_disposition_codes     json NOT NULL,
    workflow_configurations    json NOT NULL DEFAULT '{}',
    created_at                 timestamptz
);
CREATE TABLE workflow_definitions (
    id            serial PRIMARY KEY,
    workflow_id   integer NOT NULL REFERENCES workflows,
    is_current    boolean NOT NULL DEFAULT false,
    created_at    timestamptz
);
CREATE TABLE workflow_runs (
    id               serial PRIMARY KEY,
    name             varchar NOT NULL,
    workflow_id      integer NOT NULL REFERENCES workflows,
    definition_id    integer REFERENCES workflow_definitions,
    mode             workflow_run_mode NOT NULL,
    call_type        workflow_call_type NOT NULL DEFAULT 'outbound',
    state            workflow_run_state NOT NULL DEFAULT 'initialized',
    is_completed     boolean NOT NULL DEFAULT false,
    storage_backend  storage_backend NOT NULL DEFAULT 's3',
    usage_info       json NOT NULL DEFAULT '{}',
    cost_info        json NOT NULL DEFAULT '{}',
    initial_context  json NOT NULL DEFAULT '{}',
    gathered_context json NOT NULL DEFAULT '{}',
    logs             json NOT NULL DEFAULT '{}',
    annotations      json NOT NULL DEFAULT '{}',
    campaign_id      integer,
    queued_run_id    integer,
    created_at       timestamptz
);
CREATE INDEX workflow_runs_workflow ON workflow_runs (workflow_id);
"""


def upgrade() -> None:
    inspector = sqlalchemy.inspect(op.get_bind())
    if not any(inspector.has_table(table) for table in _TABLES):
        op.execute(_SCHEMA)


def downgrade() -> None:
    """Leaves the platform's tables alone: what is in them is not ours."""

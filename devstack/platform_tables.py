"""The platform's tables as its own migrations make them, in both layouts, and its upgrade from one to the other.

As strict as the platform's: what is NOT NULL there is so here, and what has no default there has none here. They are
those tables that calls touch; the product's own small ones (stand-alone) are made by `arictl db upgrade`.

In a test, ask for the layout, and `database_url` is such a database, migrated and empty:

    @pytest.mark.parametrize("layout", platform_tables.EVERY, indirect=True)   # stand-alone, 2026-02 and newest
    @pytest.mark.parametrize("layout", ["newest"], indirect=True)              # or one of them; also as a pytestmark

    def test_it(database_url: str) -> None:
        with closing_tenant(database_url) as tenant:      # devstack.tenants: rows as the platform writes them
            tenant.configure("http://pbx:8088")           # on newest also a phone number for each of `numbers`

A deployment of the acceptance tests: `deploy("name", layout="newest")`. The platform's own upgrade while a test runs:
`platform_tables.upgrade(database_url)`, on a database of the layout 2026-02.
"""

from __future__ import annotations

from typing import Literal, get_args

import psycopg

Layout = Literal["stand-alone", "2026-02", "newest"]
EVERY: tuple[Layout, ...] = get_args(Layout)

#: The revisions in the platform's own alembic_version.
FEBRUARY_REVISION = "0f1e2d3c4b5a"
NEWEST_REVISION = "f3a1c47b9e02"

_FEBRUARY = """
CREATE TYPE campaign_state AS ENUM ('created', 'syncing', 'running', 'paused', 'completed', 'failed');
CREATE TYPE queued_run_state AS ENUM ('queued', 'processed', 'processing', 'failed');
CREATE TYPE quota_type AS ENUM ('monthly', 'annual');
CREATE TYPE storage_backend AS ENUM ('s3', 'minio');
CREATE TYPE workflow_call_type AS ENUM ('inbound', 'outbound');
CREATE TYPE workflow_run_mode AS ENUM ('ari', 'twilio', 'vonage', 'vobiz', 'cloudonix', 'webrtc', 'smallwebrtc',
                                       'stasis', 'VOICE', 'CHAT');
CREATE TYPE workflow_run_state AS ENUM ('initialized', 'running', 'completed');
CREATE TYPE workflow_status AS ENUM ('active', 'archived');

CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY);

CREATE TABLE organizations (
    id                   serial PRIMARY KEY,
    provider_id          varchar NOT NULL,
    created_at           timestamptz,
    quota_type           quota_type NOT NULL DEFAULT 'monthly',
    quota_dograh_tokens  integer NOT NULL DEFAULT 0,
    quota_reset_day      integer NOT NULL DEFAULT 1,
    quota_start_date     timestamptz,
    quota_enabled        boolean NOT NULL DEFAULT false,
    price_per_second_usd double precision
);
CREATE UNIQUE INDEX ix_organizations_provider_id ON organizations (provider_id);
CREATE TABLE organization_configurations (
    id              serial PRIMARY KEY,
    organization_id integer NOT NULL REFERENCES organizations ON DELETE CASCADE,
    key             varchar NOT NULL,
    value           json NOT NULL,
    created_at      timestamptz,
    updated_at      timestamptz,
    CONSTRAINT _organization_key_uc UNIQUE (organization_id, key)
);
CREATE TABLE users (
    id                       serial PRIMARY KEY,
    provider_id              varchar NOT NULL,
    created_at               timestamptz,
    is_superuser             boolean,
    selected_organization_id integer REFERENCES organizations
);
CREATE UNIQUE INDEX ix_users_provider_id ON users (provider_id);
CREATE TABLE organization_users (
    user_id         integer NOT NULL REFERENCES users,
    organization_id integer NOT NULL REFERENCES organizations,
    PRIMARY KEY (user_id, organization_id)
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
    CONSTRAINT uq_workflow_hash_workflow_id UNIQUE (workflow_hash, workflow_id)
);
CREATE TABLE campaigns (
    id                     serial PRIMARY KEY,
    name                   varchar NOT NULL,
    organization_id        integer NOT NULL REFERENCES organizations,
    workflow_id            integer NOT NULL REFERENCES workflows,
    created_by             integer NOT NULL REFERENCES users,
    source_type            varchar NOT NULL,
    source_id              varchar NOT NULL,
    state                  campaign_state NOT NULL,
    total_rows             integer,
    processed_rows         integer NOT NULL,
    failed_rows            integer NOT NULL,
    created_at             timestamptz,
    started_at             timestamptz,
    completed_at           timestamptz,
    updated_at             timestamptz,
    rate_limit_per_second  integer NOT NULL,
    max_retries            integer NOT NULL,
    source_sync_status     varchar NOT NULL,
    source_last_synced_at  timestamptz,
    source_sync_error      varchar,
    retry_config           json NOT NULL DEFAULT '{"enabled": true, "max_retries": 2, "retry_on_busy": true,
                               "retry_on_no_answer": true, "retry_on_voicemail": true, "retry_delay_seconds": 120}',
    last_batch_scheduled_at timestamptz,
    last_activity_at       timestamptz,
    orchestrator_metadata  json NOT NULL DEFAULT '{}'
);
CREATE TABLE queued_runs (
    id                   serial PRIMARY KEY,
    campaign_id          integer NOT NULL REFERENCES campaigns ON DELETE CASCADE,
    source_uuid          varchar NOT NULL,
    context_variables    json NOT NULL,
    state                queued_run_state NOT NULL,
    created_at           timestamptz,
    processed_at         timestamptz,
    retry_count          integer NOT NULL DEFAULT 0,
    parent_queued_run_id integer REFERENCES queued_runs,
    scheduled_for        timestamptz,
    retry_reason         varchar
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
    campaign_id         integer REFERENCES campaigns,
    logs                json NOT NULL DEFAULT '{}',
    queued_run_id       integer REFERENCES queued_runs,
    storage_backend     storage_backend NOT NULL DEFAULT 's3',
    state               workflow_run_state NOT NULL DEFAULT 'initialized',
    call_type           workflow_call_type NOT NULL DEFAULT 'outbound',
    public_access_token varchar(36)
);
CREATE INDEX idx_workflow_runs_call_id ON workflow_runs ((gathered_context ->> 'call_id'))
    WHERE gathered_context ->> 'call_id' IS NOT NULL;
CREATE INDEX idx_workflow_runs_campaign_id ON workflow_runs (campaign_id);
CREATE INDEX idx_workflow_runs_workflow_id ON workflow_runs (workflow_id);
CREATE UNIQUE INDEX idx_workflow_runs_public_access_token ON workflow_runs (public_access_token)
    WHERE public_access_token IS NOT NULL;
"""

#: Rows of before are copied, and stay behind: TELEPHONY_CONFIGURATION, and each user's configuration.
_UPGRADE = """
CREATE TABLE folders (
    id              serial PRIMARY KEY,
    organization_id integer NOT NULL REFERENCES organizations,
    name            varchar NOT NULL,
    created_at      timestamptz
);
CREATE TABLE telephony_configurations (
    id                  serial PRIMARY KEY,
    organization_id     integer NOT NULL REFERENCES organizations ON DELETE CASCADE,
    name                varchar(64) NOT NULL,
    provider            varchar(32) NOT NULL,
    credentials         json NOT NULL,
    is_default_outbound boolean NOT NULL DEFAULT false,
    created_at          timestamptz,
    updated_at          timestamptz,
    inactive            boolean NOT NULL DEFAULT false,
    inactive_since      timestamptz,
    inactive_reason     varchar(255),
    CONSTRAINT uq_telephony_configurations_org_name UNIQUE (organization_id, name)
);
CREATE INDEX ix_telephony_configurations_org ON telephony_configurations (organization_id);
CREATE UNIQUE INDEX uq_telephony_configurations_default ON telephony_configurations (organization_id)
    WHERE is_default_outbound;
CREATE TABLE telephony_trunks (
    id                         serial PRIMARY KEY,
    telephony_configuration_id integer NOT NULL REFERENCES telephony_configurations ON DELETE CASCADE,
    name                       varchar(64) NOT NULL,
    enabled                    boolean NOT NULL DEFAULT true,
    settings                   json NOT NULL,
    external_id                varchar(255),
    created_at                 timestamptz,
    updated_at                 timestamptz,
    CONSTRAINT uq_telephony_trunks_config_name UNIQUE (telephony_configuration_id, name)
);
CREATE TABLE telephony_phone_numbers (
    id                         serial PRIMARY KEY,
    organization_id            integer NOT NULL REFERENCES organizations ON DELETE CASCADE,
    telephony_configuration_id integer NOT NULL REFERENCES telephony_configurations ON DELETE CASCADE,
    address                    varchar(255) NOT NULL,
    address_normalized         varchar(255) NOT NULL,
    address_type               varchar(16) NOT NULL,
    country_code               varchar(2),
    label                      varchar(64),
    inbound_workflow_id        integer REFERENCES workflows ON DELETE SET NULL,
    is_active                  boolean NOT NULL DEFAULT true,
    is_default_caller_id       boolean NOT NULL DEFAULT false,
    extra_metadata             json NOT NULL DEFAULT '{}',
    created_at                 timestamptz,
    updated_at                 timestamptz,
    telephony_trunk_id         integer REFERENCES telephony_trunks ON DELETE SET NULL,
    CONSTRAINT uq_phone_numbers_org_address UNIQUE (organization_id, address_normalized)
);
CREATE INDEX ix_phone_numbers_config ON telephony_phone_numbers (telephony_configuration_id);
CREATE INDEX ix_phone_numbers_inbound_lookup ON telephony_phone_numbers (address_normalized, organization_id)
    WHERE is_active;
CREATE UNIQUE INDEX uq_phone_numbers_default_caller ON telephony_phone_numbers (telephony_configuration_id)
    WHERE is_default_caller_id;

ALTER TABLE organization_configurations ADD last_validated_at timestamptz;
ALTER TABLE users ADD email varchar, ADD password_hash varchar;
CREATE UNIQUE INDEX ix_users_email_lower ON users (lower(email)) WHERE email IS NOT NULL;
ALTER TABLE user_configurations ADD key varchar;
UPDATE user_configurations SET key = 'MODEL_CONFIGURATION';
ALTER TABLE user_configurations ALTER key SET NOT NULL, ADD CONSTRAINT _user_configuration_key_uc UNIQUE (user_id, key);
ALTER TABLE campaigns ADD telephony_configuration_id integer REFERENCES telephony_configurations,
    ADD logs json NOT NULL DEFAULT '[]';

ALTER TABLE workflow_definitions DROP CONSTRAINT uq_workflow_hash_workflow_id, ALTER workflow_hash DROP NOT NULL,
    ADD status varchar NOT NULL DEFAULT 'published', ADD version_number integer, ADD published_at timestamptz,
    ADD workflow_configurations json NOT NULL DEFAULT '{}',
    ADD template_context_variables json NOT NULL DEFAULT '{}',
    ADD call_disposition_codes json NOT NULL DEFAULT '{}';
UPDATE workflow_definitions SET status = 'legacy' WHERE NOT is_current;
CREATE INDEX ix_workflow_definitions_workflow_status ON workflow_definitions (workflow_id, status);
ALTER TABLE workflows ADD released_definition_id integer REFERENCES workflow_definitions,
    ADD workflow_uuid varchar(36), ADD folder_id integer REFERENCES folders ON DELETE SET NULL;
UPDATE workflows w SET workflow_uuid = gen_random_uuid()::text, released_definition_id = (
    SELECT d.id FROM workflow_definitions d WHERE d.workflow_id = w.id AND d.is_current ORDER BY d.id DESC LIMIT 1);
ALTER TABLE workflows ALTER workflow_uuid SET NOT NULL;
CREATE UNIQUE INDEX ix_workflows_workflow_uuid ON workflows (workflow_uuid);

ALTER TABLE workflow_runs ALTER mode TYPE varchar(64) USING mode::text, ADD extra json NOT NULL DEFAULT '{}';
DROP TYPE workflow_run_mode;

INSERT INTO telephony_configurations (organization_id, name, provider, credentials, is_default_outbound, created_at)
SELECT organization_id, 'Default', value ->> 'provider',
       (value::jsonb - ARRAY['provider', 'from_numbers', 'inbound_workflow_id'])::json, true, now()
FROM organization_configurations WHERE key = 'TELEPHONY_CONFIGURATION';
INSERT INTO telephony_phone_numbers (organization_id, telephony_configuration_id, address, address_normalized,
                                     address_type, inbound_workflow_id, created_at)
SELECT DISTINCT ON (o.organization_id, normalized) o.organization_id, c.id, number, normalized,
       'pstn', (o.value ->> 'inbound_workflow_id')::integer, now()
FROM organization_configurations o
JOIN telephony_configurations c USING (organization_id)
CROSS JOIN json_array_elements_text(o.value -> 'from_numbers') AS number
CROSS JOIN LATERAL (SELECT regexp_replace(number, '[ ()-]', '', 'g') AS bare) AS spelled
CROSS JOIN LATERAL (SELECT CASE WHEN bare ~ '^[+]?[0-9]{8,15}$' THEN '+' || ltrim(bare, '+')
                                ELSE lower(trim(number)) END AS normalized) AS canonical
WHERE o.key = 'TELEPHONY_CONFIGURATION';
"""


def create(url: str, layout: Layout, *, exists_ok: bool = False) -> None:
    """Make the platform's tables in an empty database; stand-alone: none, `arictl db upgrade` makes its own.

    Args:
        exists_ok: A database that has such tables is left as it is.
    """
    if layout == "stand-alone" or (exists_ok and _exist(url)):
        return
    _run(url, _FEBRUARY, FEBRUARY_REVISION)
    if layout == "newest":
        upgrade(url)


def upgrade(url: str) -> None:
    """Do what the platform's own migrations do from the layout 2026-02 to the newest, with the rows that are there."""
    _run(url, _UPGRADE, NEWEST_REVISION)


def _exist(url: str) -> bool:
    with psycopg.connect(url, connect_timeout=5) as connection:
        return connection.execute("SELECT to_regclass('public.workflow_runs')").fetchone() != (None,)


def _run(url: str, statements: str, revision: str) -> None:
    # Otherwise those of a role named `ari` would be made in the schema `ari`, once that is there.
    with psycopg.connect(url, connect_timeout=5, options="-c search_path=public") as connection:
        connection.execute(statements.encode())
        connection.execute("DELETE FROM alembic_version")
        connection.execute("INSERT INTO alembic_version VALUES (%s)", [revision])

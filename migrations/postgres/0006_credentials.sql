-- The vault: credentials of brokers and LLM providers that the tenants' users keep here.
-- Only additions, so the release before this one still runs on this schema.

-- What a credential is, without its values. environment: development, testing, production. organisation is no secret.
-- rotation_period in microseconds; rotation_due_at is when the CURRENT value is to be replaced; rotation_driver: manual,
-- webhook, command. format_ok: the CURRENT value looked as the catalogue says when it was last looked at. probe_*: what the
-- last probe of the CURRENT value said; NULL before the first one.
CREATE TABLE credentials (
    id              TEXT PRIMARY KEY,
    tenant          TEXT NOT NULL REFERENCES tenants (name),
    owner           TEXT NOT NULL REFERENCES principals (id),
    provider        TEXT NOT NULL,
    environment     TEXT NOT NULL,
    name            TEXT NOT NULL,
    organisation    TEXT NOT NULL DEFAULT '',
    rotation_period BIGINT NOT NULL,
    rotation_due_at BIGINT NOT NULL,
    rotation_driver TEXT NOT NULL DEFAULT 'manual',
    format_ok       BOOLEAN NOT NULL,
    probe_result    TEXT,
    probe_detail    TEXT,
    probed_at       BIGINT,
    revision        BIGINT NOT NULL,
    created_at      BIGINT NOT NULL,
    updated_at      BIGINT NOT NULL,
    UNIQUE (tenant, owner, provider, environment, name)
);
CREATE INDEX credentials_by_tenant ON credentials (tenant, id);
CREATE INDEX credentials_by_owner ON credentials (owner, id);
CREATE INDEX credentials_by_due ON credentials (rotation_due_at, id);

-- One row is one value, of a broker or an LLM provider alike. label: PENDING, CURRENT, PREVIOUS. ciphertext: sealed by
-- version kid of the tenant's key, bound to this row's id, credential, tenant, owner, provider and environment.
-- last_four: the end of the secret, less of it where the secret is short. hold_until: how long a PREVIOUS value is kept.
CREATE TABLE user_broker_credentials (
    id            TEXT PRIMARY KEY,
    credential_id TEXT NOT NULL REFERENCES credentials (id),
    tenant        TEXT NOT NULL REFERENCES tenants (name),
    owner         TEXT NOT NULL REFERENCES principals (id),
    provider      TEXT NOT NULL,
    environment   TEXT NOT NULL,
    label         TEXT NOT NULL,
    kid           TEXT NOT NULL REFERENCES key_versions (kid),
    ciphertext    BYTEA NOT NULL,
    last_four     TEXT NOT NULL,
    created_at    BIGINT NOT NULL,
    promoted_at   BIGINT,
    hold_until    BIGINT
);
-- The database itself refuses a second value of one label.
CREATE UNIQUE INDEX user_broker_credentials_one_label ON user_broker_credentials (credential_id, label);
CREATE INDEX user_broker_credentials_by_kid ON user_broker_credentials (kid, id);

-- Principals with owner, entitlements and state; API keys; OAuth clients.
-- Only additions, so the release before this one still runs on this schema. It knows nothing of SUSPENDED: finish an
-- upgrade before you rely on a suspension.

ALTER TABLE principals ADD COLUMN owner TEXT NOT NULL DEFAULT '';
ALTER TABLE principals ADD COLUMN state TEXT NOT NULL DEFAULT 'ACTIVE';

-- Scope-tokens (RFC 6749 section 3.3).
CREATE TABLE principal_scopes (
    principal_id TEXT NOT NULL REFERENCES principals (id),
    scope        TEXT NOT NULL,
    PRIMARY KEY (principal_id, scope)
);

-- auth_method: CLIENT_SECRET, PRIVATE_KEY_JWT (jwks), TLS_CLIENT_AUTH (identity). scopes and audiences are separated by
-- blanks, the first audience is the default. ttl in microseconds, NULL for the daemon's default.
CREATE TABLE clients (
    id          TEXT PRIMARY KEY,
    tenant      TEXT NOT NULL REFERENCES tenants (name),
    owner       TEXT NOT NULL REFERENCES principals (id),
    name        TEXT NOT NULL,
    auth_method TEXT NOT NULL,
    jwks        TEXT NOT NULL,
    identity    TEXT NOT NULL,
    scopes      TEXT NOT NULL,
    audiences   TEXT NOT NULL,
    ttl         BIGINT,
    coalesces   BOOLEAN NOT NULL,
    state       TEXT NOT NULL,
    revision    BIGINT NOT NULL,
    created_at  BIGINT NOT NULL
);
CREATE INDEX clients_by_tenant ON clients (tenant, id);
CREATE INDEX clients_by_owner ON clients (owner, id);

-- One row is one secret. hash: keyed by version pepper_kid of the pepper key, in the way that hash_scheme names.
-- state: ACTIVE, EXPIRED, REVOKED. term: how long the key was made to last, in microseconds.
CREATE TABLE api_keys (
    id           TEXT PRIMARY KEY,
    tenant       TEXT NOT NULL REFERENCES tenants (name),
    owner        TEXT NOT NULL REFERENCES principals (id),
    client_id    TEXT REFERENCES clients (id),
    name         TEXT NOT NULL,
    scopes       TEXT NOT NULL,
    state        TEXT NOT NULL,
    hash         BYTEA NOT NULL,
    hash_scheme  TEXT NOT NULL,
    pepper_kid   TEXT NOT NULL,
    last_four    TEXT NOT NULL,
    created_at   BIGINT NOT NULL,
    expires_at   BIGINT NOT NULL,
    term         BIGINT NOT NULL,
    last_used_at BIGINT,
    ended_at     BIGINT,
    ended_by     TEXT REFERENCES principals (id),
    end_reason   TEXT NOT NULL DEFAULT '',
    replaces     TEXT REFERENCES api_keys (id),
    replaced_by  TEXT REFERENCES api_keys (id)
);
CREATE INDEX api_keys_by_tenant ON api_keys (tenant, id);
CREATE INDEX api_keys_by_owner ON api_keys (owner, id);
CREATE INDEX api_keys_by_client ON api_keys (client_id, id);
CREATE INDEX api_keys_by_end ON api_keys (expires_at) WHERE state = 'ACTIVE';
CREATE INDEX api_keys_by_pepper ON api_keys (pepper_kid, id) WHERE state = 'ACTIVE';

-- jti of client assertions that were taken (RFC 7523 section 3), until they could not be taken again.
CREATE TABLE client_assertions (
    client_id  TEXT NOT NULL,
    jti        TEXT NOT NULL,
    keep_until BIGINT NOT NULL,
    PRIMARY KEY (client_id, jti)
);
CREATE INDEX client_assertions_by_end ON client_assertions (keep_until);

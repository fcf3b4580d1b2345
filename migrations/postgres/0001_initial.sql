-- Tenants, principals, keys, rotations and the audit log.
-- Times are microseconds since the Unix epoch. Ids are UUIDv7 in canonical text.

CREATE TABLE tenants (
    name       TEXT PRIMARY KEY,
    created_at BIGINT NOT NULL
);

CREATE TABLE principals (
    id         TEXT PRIMARY KEY,
    tenant     TEXT NOT NULL REFERENCES tenants (name),
    name       TEXT NOT NULL,
    kind       TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    UNIQUE (tenant, name)
);

-- One identity authenticates as one principal, for all tenants.
CREATE TABLE principal_identities (
    identity     TEXT PRIMARY KEY,
    principal_id TEXT NOT NULL REFERENCES principals (id)
);
CREATE INDEX principal_identities_by_principal ON principal_identities (principal_id);

-- scope is a tenant's name, or '*' for all tenants.
CREATE TABLE role_grants (
    principal_id TEXT NOT NULL REFERENCES principals (id),
    role         TEXT NOT NULL,
    scope        TEXT NOT NULL,
    PRIMARY KEY (principal_id, role, scope)
);

CREATE TABLE keys (
    id               TEXT PRIMARY KEY,
    tenant           TEXT NOT NULL REFERENCES tenants (name),
    name             TEXT NOT NULL,
    purpose          TEXT NOT NULL,
    algorithm        TEXT NOT NULL,
    rsa_bits         BIGINT NOT NULL,
    backend          TEXT NOT NULL,
    owner            TEXT NOT NULL,
    created_at       BIGINT NOT NULL,
    rotation_period  BIGINT NOT NULL,
    next_rotation_at BIGINT NOT NULL,
    revision         BIGINT NOT NULL,
    UNIQUE (tenant, name)
);

-- Either backend_ref and public_jwk (a key pair), or kek_ref and wrapped_key (a data key).
CREATE TABLE key_versions (
    kid            TEXT PRIMARY KEY,
    key_id         TEXT NOT NULL REFERENCES keys (id),
    number         BIGINT NOT NULL,
    state          TEXT NOT NULL,
    backend_ref    TEXT,
    public_jwk     TEXT,
    kek_ref        TEXT,
    wrapped_key    BYTEA,
    created_at     BIGINT NOT NULL,
    announced_at   BIGINT,
    activated_at   BIGINT,
    deactivated_at BIGINT,
    UNIQUE (key_id, number)
);
-- The database itself refuses a second ACTIVE version.
CREATE UNIQUE INDEX key_versions_one_active ON key_versions (key_id) WHERE state = 'ACTIVE';

CREATE TABLE rotations (
    id               TEXT PRIMARY KEY,
    tenant           TEXT NOT NULL REFERENCES tenants (name),
    key_id           TEXT NOT NULL REFERENCES keys (id),
    state            TEXT NOT NULL,
    old_kid          TEXT NOT NULL REFERENCES key_versions (kid),
    new_kid          TEXT NOT NULL REFERENCES key_versions (kid),
    justification    TEXT NOT NULL,
    plan             TEXT NOT NULL,
    soak             BIGINT NOT NULL,
    requester        TEXT NOT NULL REFERENCES principals (id),
    approvals_needed BIGINT NOT NULL CHECK (approvals_needed >= 1),
    deployer         TEXT REFERENCES principals (id),
    requested_at     BIGINT NOT NULL,
    announced_at     BIGINT,
    deployed_at      BIGINT
);
CREATE UNIQUE INDEX rotations_one_open ON rotations (key_id) WHERE state IN ('REQUESTED', 'APPROVED');
CREATE INDEX rotations_by_tenant ON rotations (tenant, id);

CREATE TABLE rotation_approvals (
    rotation_id TEXT NOT NULL REFERENCES rotations (id),
    approver    TEXT NOT NULL REFERENCES principals (id),
    at          BIGINT NOT NULL,
    PRIMARY KEY (rotation_id, approver)
);

-- What is about to be created in a backend; the id is its CKA_ID. A row that is still PENDING after a
-- crash names what may have been left behind.
CREATE TABLE backend_intents (
    id         TEXT PRIMARY KEY,
    backend    TEXT NOT NULL,
    tenant     TEXT NOT NULL,
    label      TEXT NOT NULL,
    state      TEXT NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE TABLE audit_events (
    stream     TEXT NOT NULL,
    seq        BIGINT NOT NULL,
    at         BIGINT NOT NULL,
    tenant     TEXT NOT NULL,
    actor      TEXT NOT NULL,
    actor_type TEXT NOT NULL,
    action     TEXT NOT NULL,
    entity     TEXT NOT NULL,
    entity_id  TEXT NOT NULL,
    outcome    TEXT NOT NULL,
    request_id TEXT NOT NULL,
    data       TEXT NOT NULL,
    prev_hash  BYTEA NOT NULL,
    hash       BYTEA NOT NULL,
    PRIMARY KEY (stream, seq)
);
CREATE INDEX audit_events_by_tenant ON audit_events (tenant, at);

-- Last row of each stream: where the next one is chained, and proof that the tail was not cut off.
CREATE TABLE audit_heads (
    stream TEXT PRIMARY KEY,
    seq    BIGINT NOT NULL,
    hash   BYTEA NOT NULL
);

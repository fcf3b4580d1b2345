-- Several backends, KEKs that rotate, MAC keys, webhooks, counted use, and tenants whose keys are destroyed.
-- Only additions, so the release before this one still runs on this schema.

-- Where the pair of a version is; NULL means in the backend of its key. A key's own backend is where its next version
-- is made. sealed_secret: the secret of an imported MAC key, encrypted by the version's data key.
-- made, opened, rewrapped: how often, as counted by the replicas since this column is there.
ALTER TABLE key_versions ADD COLUMN backend TEXT;
UPDATE key_versions SET backend = (SELECT k.backend FROM keys k WHERE k.id = key_id) WHERE backend_ref IS NOT NULL;
ALTER TABLE key_versions ADD COLUMN sealed_secret BYTEA;
ALTER TABLE key_versions ADD COLUMN made BIGINT NOT NULL DEFAULT 0;
ALTER TABLE key_versions ADD COLUMN opened BIGINT NOT NULL DEFAULT 0;
ALTER TABLE key_versions ADD COLUMN rewrapped BIGINT NOT NULL DEFAULT 0;
CREATE INDEX key_versions_by_kek ON key_versions (kek_ref, kid) WHERE wrapped_key IS NOT NULL;

-- The backend of standby versions; empty for the key's own.
ALTER TABLE keys ADD COLUMN standby_backend TEXT NOT NULL DEFAULT '';

-- Key-encryption keys. reference is what key_versions.kek_ref names. The probe is a data key wrapped by the KEK and the
-- SHA-256 of what it unwraps to: it tells whether a key that is found under the reference is this very KEK.
-- state: PRE_ACTIVE (its rotation is open), ACTIVE, DEACTIVATED (only unwraps), RETIRED (no row needs it).
CREATE TABLE keks (
    reference      TEXT PRIMARY KEY,
    backend        TEXT NOT NULL,
    state          TEXT NOT NULL,
    probe          BYTEA NOT NULL,
    probe_digest   BYTEA NOT NULL,
    created_at     BIGINT NOT NULL,
    activated_at   BIGINT,
    deactivated_at BIGINT,
    retired_at     BIGINT
);
CREATE UNIQUE INDEX keks_one_active ON keks (state) WHERE state = 'ACTIVE';

-- state as in rotations; DEPLOYED means that data keys are being rewrapped. total: rows to rewrap at the deployment;
-- rewrapped: rows moved, counted in the transaction that moved them; failed: rows that do not unwrap under the old KEK.
CREATE TABLE kek_rotations (
    id               TEXT PRIMARY KEY,
    state            TEXT NOT NULL,
    old_kek          TEXT NOT NULL REFERENCES keks (reference),
    new_kek          TEXT NOT NULL REFERENCES keks (reference),
    justification    TEXT NOT NULL,
    plan             TEXT NOT NULL,
    requester        TEXT NOT NULL REFERENCES principals (id),
    approvals_needed BIGINT NOT NULL CHECK (approvals_needed >= 1),
    deployer         TEXT REFERENCES principals (id),
    requested_at     BIGINT NOT NULL,
    approved_at      BIGINT,
    deployed_at      BIGINT,
    expires_at       BIGINT NOT NULL,
    ended_at         BIGINT,
    ended_by         TEXT REFERENCES principals (id),
    end_reason       TEXT NOT NULL DEFAULT '',
    total            BIGINT NOT NULL DEFAULT 0,
    rewrapped        BIGINT NOT NULL DEFAULT 0,
    failed           BIGINT NOT NULL DEFAULT 0,
    is_kek           BIGINT NOT NULL DEFAULT 1
);
-- One at a time, for the whole installation: is_kek is the same in every row.
CREATE UNIQUE INDEX kek_rotations_one_open ON kek_rotations (is_kek) WHERE state IN ('REQUESTED', 'APPROVED', 'DEPLOYED');

CREATE TABLE kek_rotation_approvals (
    rotation_id TEXT NOT NULL REFERENCES kek_rotations (id),
    approver    TEXT NOT NULL REFERENCES principals (id),
    at          BIGINT NOT NULL,
    PRIMARY KEY (rotation_id, approver)
);

-- Webhook deliveries that were seen. mark is 'id:' and the event id, or 'sha256:' and a digest of what was signed: either
-- repeats a delivery.
CREATE TABLE webhook_events (
    key_id     TEXT NOT NULL REFERENCES keys (id),
    mark       TEXT NOT NULL,
    seen_at    BIGINT NOT NULL,
    keep_until BIGINT NOT NULL,
    PRIMARY KEY (key_id, mark)
);
CREATE INDEX webhook_events_by_end ON webhook_events (keep_until);

-- Destruction of every key of a tenant. proof: the signed note that names what was destroyed.
CREATE TABLE tenant_destructions (
    id            TEXT PRIMARY KEY,
    tenant        TEXT NOT NULL REFERENCES tenants (name),
    state         TEXT NOT NULL,
    reason        TEXT NOT NULL,
    requester     TEXT NOT NULL REFERENCES principals (id),
    requested_at  BIGINT NOT NULL,
    approver      TEXT REFERENCES principals (id),
    approved_at   BIGINT,
    destroy_at    BIGINT,
    begun_at      BIGINT,
    ended_at      BIGINT,
    cancelled_by  TEXT REFERENCES principals (id),
    cancel_reason TEXT NOT NULL DEFAULT '',
    proof         TEXT NOT NULL DEFAULT ''
);
CREATE UNIQUE INDEX tenant_destructions_one_open ON tenant_destructions (tenant)
    WHERE state IN ('REQUESTED', 'SCHEDULED', 'DESTROYING');
CREATE INDEX tenant_destructions_by_tenant ON tenant_destructions (tenant, id);

-- From then on nothing is created in the tenant.
ALTER TABLE tenants ADD COLUMN erased_at BIGINT;

-- The whole life of a key: policies, grace, incidents, revocations, destruction; and scheduled work.
-- Only additions, so the release before this one still runs on this schema.

-- How a key rotates. approvals_needed is never lowered. policy_approved_by is the standing approval of AUTOMATIC.
-- schedule_set_by changed period or date last: rotations that are due because of it count as asked for by them.
ALTER TABLE keys ADD COLUMN rotation_mode TEXT NOT NULL DEFAULT 'MANUAL';
ALTER TABLE keys ADD COLUMN approvals_needed BIGINT NOT NULL DEFAULT 1 CHECK (approvals_needed >= 1);
ALTER TABLE keys ADD COLUMN standby BIGINT NOT NULL DEFAULT 0;
ALTER TABLE keys ADD COLUMN grace BIGINT NOT NULL DEFAULT 0;
ALTER TABLE keys ADD COLUMN policy_set_by TEXT REFERENCES principals (id);
ALTER TABLE keys ADD COLUMN policy_approved_by TEXT REFERENCES principals (id);
ALTER TABLE keys ADD COLUMN policy_approved_at BIGINT;
ALTER TABLE keys ADD COLUMN schedule_set_by TEXT REFERENCES principals (id);
CREATE INDEX keys_by_next_rotation ON keys (next_rotation_at);

-- A time for every transition. last_token_exp: no token under this version expires later. A destroyed data key keeps
-- its kek_ref and loses its wrapped_key.
ALTER TABLE key_versions ADD COLUMN retired_at BIGINT;
ALTER TABLE key_versions ADD COLUMN compromised_at BIGINT;
ALTER TABLE key_versions ADD COLUMN destroyed_at BIGINT;
ALTER TABLE key_versions ADD COLUMN last_token_exp BIGINT;
ALTER TABLE key_versions ADD COLUMN last_used_at BIGINT;
ALTER TABLE key_versions ADD COLUMN is_standby BIGINT NOT NULL DEFAULT 0;
CREATE INDEX key_versions_in_grace ON key_versions (key_id) WHERE state = 'VERIFY_ONLY';
CREATE INDEX key_versions_compromised ON key_versions (key_id) WHERE state = 'COMPROMISED';

-- Nobody has kept the mark of versions that signed tokens before this column, and a token lives a day at most. Two days,
-- because the release before this one may go on issuing while the replicas are replaced.
UPDATE key_versions SET last_token_exp = CAST(unixepoch('subsec') * 1000000 AS INTEGER) + 172800000000
    WHERE state IN ('ACTIVE', 'VERIFY_ONLY') AND key_id IN (SELECT id FROM keys WHERE purpose = 'TOKEN_SIGNING');

ALTER TABLE rotations ADD COLUMN grace BIGINT NOT NULL DEFAULT 0;
ALTER TABLE rotations ADD COLUMN scheduled BIGINT NOT NULL DEFAULT 0;
ALTER TABLE rotations ADD COLUMN expires_at BIGINT NOT NULL DEFAULT 9223372036854775807;
ALTER TABLE rotations ADD COLUMN grace_ends_at BIGINT;
ALTER TABLE rotations ADD COLUMN ended_at BIGINT;
ALTER TABLE rotations ADD COLUMN ended_by TEXT REFERENCES principals (id);
ALTER TABLE rotations ADD COLUMN end_reason TEXT NOT NULL DEFAULT '';
UPDATE rotations SET grace_ends_at = CAST(unixepoch('subsec') * 1000000 AS INTEGER) + 172800000000 WHERE state = 'DEPLOYED';
CREATE INDEX rotations_in_grace ON rotations (key_id) WHERE state = 'DEPLOYED';

CREATE TABLE incidents (
    id                 TEXT PRIMARY KEY,
    tenant             TEXT NOT NULL REFERENCES tenants (name),
    key_id             TEXT NOT NULL REFERENCES keys (id),
    kid                TEXT NOT NULL UNIQUE REFERENCES key_versions (kid),
    state              TEXT NOT NULL,
    reason             TEXT NOT NULL,
    declared_by        TEXT NOT NULL REFERENCES principals (id),
    declared_at        BIGINT NOT NULL,
    needs_successor    BIGINT NOT NULL,
    successor_kid      TEXT REFERENCES key_versions (kid),
    switched_at        BIGINT,
    postmortem         TEXT NOT NULL DEFAULT '',
    close_requested_by TEXT REFERENCES principals (id),
    close_requested_at BIGINT,
    closed_by          TEXT REFERENCES principals (id),
    closed_at          BIGINT
);
CREATE INDEX incidents_by_tenant ON incidents (tenant, id);

CREATE TABLE incident_notes (
    id          TEXT PRIMARY KEY,
    incident_id TEXT NOT NULL REFERENCES incidents (id),
    author      TEXT NOT NULL REFERENCES principals (id),
    at          BIGINT NOT NULL,
    text        TEXT NOT NULL
);
CREATE INDEX incident_notes_by_incident ON incident_notes (incident_id, id);

-- Raised once per window: window_key names what it is about and the window. Delivery works on these rows.
CREATE TABLE alerts (
    id         TEXT PRIMARY KEY,
    tenant     TEXT NOT NULL,
    kind       TEXT NOT NULL,
    entity     TEXT NOT NULL,
    entity_id  TEXT NOT NULL,
    text       TEXT NOT NULL,
    state      TEXT NOT NULL,
    raised_at  BIGINT NOT NULL,
    window_key TEXT NOT NULL UNIQUE
);
CREATE INDEX alerts_by_entity ON alerts (entity_id, id);

CREATE TABLE token_revocations (
    tenant     TEXT NOT NULL REFERENCES tenants (name),
    jti        TEXT NOT NULL,
    keep_until BIGINT NOT NULL,
    revoked_at BIGINT NOT NULL,
    PRIMARY KEY (tenant, jti)
);
CREATE INDEX token_revocations_by_end ON token_revocations (keep_until);

CREATE TABLE key_destructions (
    id            TEXT PRIMARY KEY,
    tenant        TEXT NOT NULL REFERENCES tenants (name),
    key_id        TEXT NOT NULL REFERENCES keys (id),
    kid           TEXT NOT NULL REFERENCES key_versions (kid),
    state         TEXT NOT NULL,
    reason        TEXT NOT NULL,
    requester     TEXT NOT NULL REFERENCES principals (id),
    requested_at  BIGINT NOT NULL,
    approver      TEXT REFERENCES principals (id),
    approved_at   BIGINT,
    destroy_at    BIGINT,
    ended_at      BIGINT,
    cancelled_by  TEXT REFERENCES principals (id),
    cancel_reason TEXT NOT NULL DEFAULT ''
);
CREATE UNIQUE INDEX key_destructions_one_open ON key_destructions (kid) WHERE state IN ('REQUESTED', 'SCHEDULED');
CREATE INDEX key_destructions_by_tenant ON key_destructions (tenant, id);

-- kind is CREATE or DESTROY. found: what a reconciler saw on the device under this id.
ALTER TABLE backend_intents ADD COLUMN kind TEXT NOT NULL DEFAULT 'CREATE';
ALTER TABLE backend_intents ADD COLUMN kid TEXT;
ALTER TABLE backend_intents ADD COLUMN settled_at BIGINT;
ALTER TABLE backend_intents ADD COLUMN found TEXT NOT NULL DEFAULT '';
CREATE INDEX backend_intents_pending ON backend_intents (created_at) WHERE state = 'PENDING';

-- The answer to a mutating call, kept for a caller who asks again with the same key.
CREATE TABLE idempotency_keys (
    principal_id    TEXT NOT NULL REFERENCES principals (id),
    idempotency_key TEXT NOT NULL,
    action          TEXT NOT NULL,
    request_hash    BLOB NOT NULL,
    answer          BLOB NOT NULL,
    receipt_seq     BIGINT NOT NULL,
    created_at      BIGINT NOT NULL,
    PRIMARY KEY (principal_id, idempotency_key)
);
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);

-- Who does scheduled work. Every write of a leader checks its fence.
CREATE TABLE leases (
    name       TEXT PRIMARY KEY,
    holder     TEXT NOT NULL,
    fence      BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);

-- How far each replica has followed the admin stream, by database time. A freeze waits for all of them.
CREATE TABLE replicas (
    name          TEXT PRIMARY KEY,
    seen_seq      BIGINT NOT NULL,
    seen_at       BIGINT NOT NULL,
    max_staleness BIGINT NOT NULL
);

CREATE INDEX audit_events_admin_by_entity ON audit_events (entity_id, seq) WHERE stream = 'admin';

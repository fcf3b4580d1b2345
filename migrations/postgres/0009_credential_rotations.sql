-- Rotations of credentials: a new value beside the old one, asked about, promoted, and the old one held until it is dead.
-- Not bound to `credentials` by a key: a rotation is history, also of a credential that is deleted.

-- state: MINTING, STAGED, HOLDING, COMPLETED, ROLLED_BACK. driver as in credentials. new_value, old_value: ids of the two values.
-- due_before: when the old value was to be replaced. hold_for in microseconds; hold_until: set by the promotion. check_at:
-- when the driver or the provider is asked again. new_probe_*, old_probe_*: what it said last of the two values. why: a code
-- that says why it was rolled back.
CREATE TABLE credential_rotations (
    id               TEXT PRIMARY KEY,
    credential_id    TEXT NOT NULL,
    tenant           TEXT NOT NULL REFERENCES tenants (name),
    state            TEXT NOT NULL,
    driver           TEXT NOT NULL,
    new_value        TEXT NOT NULL,
    old_value        TEXT NOT NULL,
    due_before       BIGINT NOT NULL,
    hold_for         BIGINT NOT NULL,
    hold_until       BIGINT,
    check_at         BIGINT,
    new_probe_result TEXT,
    new_probe_detail TEXT,
    new_probed_at    BIGINT,
    old_probe_result TEXT,
    old_probe_detail TEXT,
    old_probed_at    BIGINT,
    why              TEXT NOT NULL DEFAULT '',
    created_at       BIGINT NOT NULL,
    updated_at       BIGINT NOT NULL
);
-- The database itself refuses a second rotation under way.
CREATE UNIQUE INDEX credential_rotations_one_open ON credential_rotations (credential_id)
    WHERE state IN ('MINTING', 'STAGED', 'HOLDING');
CREATE INDEX credential_rotations_by_credential ON credential_rotations (credential_id, id);
CREATE INDEX credential_rotations_by_tenant ON credential_rotations (tenant, id);
CREATE INDEX credential_rotations_to_check ON credential_rotations (check_at) WHERE check_at IS NOT NULL;

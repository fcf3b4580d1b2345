-- What became of the log's past: restores of the database that somebody stands for, and what was pruned from the front.

-- A restore that was acknowledged. checkpoint: SHA-256 in hex of the text of the last checkpoint of the history that is lost,
-- and when that was written. kept_until: time of the last row of the admin stream that the copy had. audit_seq: row of the acknowledgement.
CREATE TABLE restores (
    checkpoint    TEXT PRIMARY KEY,
    checkpoint_at BIGINT NOT NULL,
    kept_until    BIGINT NOT NULL,
    audit_seq     BIGINT NOT NULL
);

-- Versions that were compromised in a history that is lost, and that the copy does not have: a newer copy may.
CREATE TABLE lost_compromised (
    kid TEXT PRIMARY KEY
);

-- Where a stream begins now: everything up to seq, whose hash that is, was pruned behind a checkpoint. audit_seq: row of the
-- admin stream that says so. finished: 1 when the last of those rows is gone.
CREATE TABLE audit_pruned (
    stream    TEXT PRIMARY KEY,
    seq       BIGINT NOT NULL,
    hash      BLOB NOT NULL,
    audit_seq BIGINT NOT NULL,
    finished  BIGINT NOT NULL
);

CREATE INDEX key_versions_frozen ON key_versions (kid) WHERE compromised_at IS NOT NULL;
-- What the scheduler asks for at every look must not be found by reading every key.
CREATE INDEX keys_with_standby ON keys (id) WHERE standby = 1;
CREATE INDEX key_versions_standby ON key_versions (key_id) WHERE is_standby = 1 AND state = 'PRE_ACTIVE';
CREATE INDEX credentials_for_drivers ON credentials (rotation_due_at) WHERE rotation_driver <> 'manual';

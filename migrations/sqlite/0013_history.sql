-- What became of the log's past: restores of the database that somebody stands for, and what was pruned from the front.

-- A restore that was acknowledged. checkpoint: SHA-256 in hex of the text of the last checkpoint of the history that is lost.
-- kept_until: time of the last row of the admin stream that the copy had. audit_seq: row of the acknowledgement.
CREATE TABLE restores (
    checkpoint TEXT PRIMARY KEY,
    at         BIGINT NOT NULL,
    kept_until BIGINT NOT NULL,
    audit_seq  BIGINT NOT NULL
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

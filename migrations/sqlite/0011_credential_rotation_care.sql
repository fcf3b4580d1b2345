-- Rotations of credentials that fail wait longer and longer, and nothing that a driver has minted is forgotten.
-- Only additions, so the release before this one still runs on this schema.

-- rotation_next_try: when the daemon may try again to begin a rotation; rotation_tries: how often in a row it could not.
ALTER TABLE credentials ADD COLUMN rotation_next_try BIGINT NOT NULL DEFAULT 0;
ALTER TABLE credentials ADD COLUMN rotation_tries BIGINT NOT NULL DEFAULT 0;

-- attempts: tries in a row that led to nothing. refusals: how often in a row the provider has refused the new value.
-- withdraw: what the driver is to be asked, as JSON, about a value that it minted and nobody uses; NULL when that is done.
-- requested_by: who staged the new value. needs_approval: another one must approve it and a third one promote it;
-- approved_by, approved_at: who did, and when.
ALTER TABLE credential_rotations ADD COLUMN attempts BIGINT NOT NULL DEFAULT 0;
ALTER TABLE credential_rotations ADD COLUMN refusals BIGINT NOT NULL DEFAULT 0;
ALTER TABLE credential_rotations ADD COLUMN withdraw TEXT;
ALTER TABLE credential_rotations ADD COLUMN requested_by TEXT;
ALTER TABLE credential_rotations ADD COLUMN needs_approval BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE credential_rotations ADD COLUMN approved_by TEXT;
ALTER TABLE credential_rotations ADD COLUMN approved_at BIGINT;
-- For looks at what has stood still.
CREATE INDEX credential_rotations_open ON credential_rotations (updated_at) WHERE state IN ('MINTING', 'STAGED', 'HOLDING');

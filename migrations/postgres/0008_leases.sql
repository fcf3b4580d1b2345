-- Leases: who holds which value of a credential, and until when. Rows go some days after the lease is over; the audit log
-- has them for ever. Not bound to `credentials` by a key: a deleted credential was held all the same.
-- max_expires_at: the hard stop. ended_at, ended_how: when it ended early, and how: RETURNED, REVOKED.
CREATE TABLE credential_leases (
    id             TEXT PRIMARY KEY,
    credential_id  TEXT NOT NULL,
    value_id       TEXT NOT NULL,
    tenant         TEXT NOT NULL REFERENCES tenants (name),
    holder         TEXT NOT NULL REFERENCES principals (id),
    created_at     BIGINT NOT NULL,
    expires_at     BIGINT NOT NULL,
    max_expires_at BIGINT NOT NULL,
    ended_at       BIGINT,
    ended_how      TEXT
);
CREATE INDEX credential_leases_by_credential ON credential_leases (credential_id, id);
CREATE INDEX credential_leases_by_tenant ON credential_leases (tenant, id);
CREATE INDEX credential_leases_by_end ON credential_leases (expires_at);

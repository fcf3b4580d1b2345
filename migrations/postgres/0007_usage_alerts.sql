-- Usage, limits, and alerts that are delivered.
-- Only additions, so the release before this one still runs on this schema.

-- Events that were recorded, so that each counts once, until an event that old is refused anyway. digest: SHA-256 of what
-- it said.
CREATE TABLE usage_events (
    tenant     TEXT NOT NULL REFERENCES tenants (name),
    event_id   TEXT NOT NULL,
    digest     BYTEA NOT NULL,
    keep_until BIGINT NOT NULL,
    PRIMARY KEY (tenant, event_id)
);
CREATE INDEX usage_events_by_end ON usage_events (keep_until);

-- Sums by minute, hour and day (span), of what began at begins_at. cost in billionths. What was not given is empty. The
-- checks keep a sum from leaving the integers.
CREATE TABLE usage_aggregates (
    tenant        TEXT NOT NULL REFERENCES tenants (name),
    span          TEXT NOT NULL,
    begins_at     BIGINT NOT NULL,
    provider      TEXT NOT NULL,
    credential_id TEXT NOT NULL,
    principal_id  TEXT NOT NULL,
    requests      BIGINT NOT NULL CHECK (requests BETWEEN 0 AND 9000000000000000000),
    errors        BIGINT NOT NULL CHECK (errors BETWEEN 0 AND 9000000000000000000),
    tokens_in     BIGINT NOT NULL CHECK (tokens_in BETWEEN 0 AND 9000000000000000000),
    tokens_out    BIGINT NOT NULL CHECK (tokens_out BETWEEN 0 AND 9000000000000000000),
    cost          BIGINT NOT NULL CHECK (cost BETWEEN 0 AND 9000000000000000000),
    last_used_at  BIGINT NOT NULL,
    PRIMARY KEY (tenant, span, begins_at, provider, credential_id, principal_id)
);
CREATE INDEX usage_aggregates_by_age ON usage_aggregates (span, begins_at);

-- subject_kind: CREDENTIAL, PROVIDER, PRINCIPAL, TENANT (whose subject is empty). Budgets in billionths; NULL: none.
CREATE TABLE usage_limits (
    tenant              TEXT NOT NULL REFERENCES tenants (name),
    subject_kind        TEXT NOT NULL,
    subject             TEXT NOT NULL,
    requests_per_minute BIGINT,
    hour_soft           BIGINT,
    hour_hard           BIGINT,
    day_soft            BIGINT,
    day_hard            BIGINT,
    month_soft          BIGINT,
    month_hard          BIGINT,
    set_by              TEXT NOT NULL REFERENCES principals (id),
    set_at              BIGINT NOT NULL,
    PRIMARY KEY (tenant, subject_kind, subject)
);

-- Requests that were admitted lately. slots: `second:count` of each second that has any, separated by commas.
CREATE TABLE usage_windows (
    tenant       TEXT NOT NULL REFERENCES tenants (name),
    subject_kind TEXT NOT NULL,
    subject      TEXT NOT NULL,
    slots        TEXT NOT NULL,
    touched_at   BIGINT NOT NULL,
    PRIMARY KEY (tenant, subject_kind, subject)
);
CREATE INDEX usage_windows_by_age ON usage_windows (touched_at);

-- ends_at: an alert about a window of time is over then. routed_at: when its deliveries were made; nobody is told now of
-- what was raised before there were any.
ALTER TABLE alerts ADD COLUMN ends_at BIGINT;
ALTER TABLE alerts ADD COLUMN resolved_at BIGINT;
ALTER TABLE alerts ADD COLUMN acked_by TEXT REFERENCES principals (id);
ALTER TABLE alerts ADD COLUMN acked_at BIGINT;
ALTER TABLE alerts ADD COLUMN ack_note TEXT NOT NULL DEFAULT '';
ALTER TABLE alerts ADD COLUMN routed_at BIGINT;
UPDATE alerts SET routed_at = raised_at;
CREATE INDEX alerts_by_tenant ON alerts (tenant, id);
CREATE INDEX alerts_unrouted ON alerts (id) WHERE routed_at IS NULL;
CREATE INDEX alerts_firing ON alerts (kind) WHERE state = 'FIRING';

-- One alert on its way to one channel. state: PENDING, DELIVERED, DEAD. next_at: not tried before; whoever tries moves it on
-- first, so that nobody else tries at the same time.
CREATE TABLE alert_deliveries (
    id         TEXT PRIMARY KEY,
    alert_id   TEXT NOT NULL,
    tenant     TEXT NOT NULL,
    channel    TEXT NOT NULL,
    state      TEXT NOT NULL,
    attempts   BIGINT NOT NULL,
    next_at    BIGINT NOT NULL,
    last_error TEXT NOT NULL DEFAULT '',
    created_at BIGINT NOT NULL,
    ended_at   BIGINT,
    UNIQUE (alert_id, channel)
);
CREATE INDEX alert_deliveries_due ON alert_deliveries (next_at) WHERE state = 'PENDING';
CREATE INDEX alert_deliveries_by_tenant ON alert_deliveries (tenant, id);

-- Budgets that something was recorded for, alerts of a window, mail that some have.
-- Only additions, so the release before this one still runs on this schema.

-- Budgets to be looked at: marked in the transaction that adds to what was spent, taken away by whoever has looked. at: a time
-- in the periods that were added to. shard: a few rows for each, so that recorders seldom wait for each other. marks: counts,
-- so that a mark that came meanwhile is not taken away with the one that was seen.
CREATE TABLE usage_budget_marks (
    tenant       TEXT NOT NULL REFERENCES tenants (name),
    subject_kind TEXT NOT NULL,
    subject      TEXT NOT NULL,
    at           BIGINT NOT NULL,
    shard        BIGINT NOT NULL,
    marks        BIGINT NOT NULL,
    PRIMARY KEY (tenant, subject_kind, subject, at, shard)
);

-- How many were told of one window.
CREATE INDEX alerts_by_window ON alerts (kind, tenant, ends_at);

-- Recipients that have an alert while others of the same channel do not, one a line.
ALTER TABLE alert_deliveries ADD COLUMN taken TEXT NOT NULL DEFAULT '';

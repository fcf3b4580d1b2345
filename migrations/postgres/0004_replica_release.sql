-- What a replica knows of the data (store/replicas.rs). NULL: its release is from before this column.
-- Only an addition, so the release before this one still runs on this schema.
ALTER TABLE replicas ADD COLUMN level BIGINT;

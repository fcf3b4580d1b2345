//! Claviger: a key-management daemon. Private keys live in a PKCS#11 token or in AWS KMS; the daemon decides who may
//! use them, uses them, and records it.
//!
//! # The map
//!
//! Imports go down only; `tests/it/ranks.rs` holds everybody to it.
//!
//! | rank | modules | room |
//! |---|---|---|
//! | R7 | [`cli`] | one file per subcommand; `dev` runs a whole environment |
//! | R6 | [`app`], [`config`], [`telemetry`] | from a configuration to a running daemon |
//! | R5 | [`grpc`], [`http`], [`jobs`] | who comes in: callers, verifiers, time |
//! | R4 | [`authn`] | who is calling |
//! | R3 | [`keys`], [`rotation`], [`destruction`], [`erasure`], [`incidents`], [`restore`], [`tokens`], [`directory`], [`clients`], [`vault`], [`usage`], [`alerts`] | what the product does |
//! | R2 | [`gate`], [`authz`], [`audit`] | the one door: may they, and what happened |
//! | R1 | [`backends`], [`envelope`], [`store`], [`egress`] | the device, the ciphertext, the database, the way out |
//! | R0 | [`model`], [`error`], [`clock`], [`health`], [`fault`], [`trace`] | nouns and pure rules |
//!
//! `directory` (tenants, principals, roles) is a room that the first design did not name: principals are managed over
//! gRPC like keys are, and `authn` only looks them up.
//!
//! # A signature
//!
//! A TLS 1.3 connection brings a verified certificate (`authn::tls`), parsed once into a peer. A call passes the layer
//! of `grpc::layers` (request id, deadline, metrics), and `grpc::crypto` converts the message. `authn` finds the
//! principal of the peer, `keys` finds the key's snapshot: both in memory. `gate.access` asks `authz` (one cached
//! decision), hands a permit to `keys.sign`, where the state machine says that the ACTIVE version may sign, and a thread
//! of `backends::pkcs11` calls the token. The record joins the next group commit of the access stream; only when that
//! is durable does the answer leave.
//!
//! # A rotation
//!
//! An issuer calls RotateKey. `gate.mutate` authorises and runs the change in a task of its own, so that a caller who
//! leaves cannot cut it in half. `keys.generate` writes an intent, then the token makes the pair whose `CKA_ID` is that
//! intent. One transaction stores the PRE_ACTIVE version, the rotation with its canonical plan, and the audit row,
//! chained to the row before. An approver sends the digest of the plan; `model::rotation` refuses the requester. The new
//! kid appears in the JWKS, soaks, and a third person deploys: one transaction makes it ACTIVE and the old one
//! VERIFY_ONLY. Every other replica sees the audit row in its change feed and forgets what it had cached.

pub mod alerts;
pub mod app;
pub mod audit;
pub mod authn;
pub mod authz;
pub mod backends;
pub mod cli;
pub mod clients;
pub mod clock;
pub mod config;
pub mod destruction;
pub mod directory;
pub mod egress;
pub mod envelope;
pub mod erasure;
pub mod error;
pub mod fault;
pub mod gate;
pub mod grpc;
pub mod health;
pub mod http;
pub mod incidents;
pub mod jobs;
pub mod keys;
pub mod model;
pub mod restore;
pub mod rotation;
pub mod store;
pub mod telemetry;
pub mod tokens;
pub mod trace;
pub mod usage;
pub mod vault;

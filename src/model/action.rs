//! What callers can do, generated from the `access` options of the proto files by `build.rs`.

/// What kind of work an action is; it decides which audit stream records it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AccessKind {
    /// Changes administrative state: recorded in the transaction of the change.
    Admin,
    /// Reads administrative state: recorded on the replica's access stream.
    Read,
    /// Uses a key: recorded on the replica's access stream before the answer leaves.
    Data,
}

/// Where an RPC is meant to be reachable from (R-ACL-4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exposure {
    /// By anybody.
    Public,
    /// By authenticated services inside the platform.
    Internal,
    /// By the security and operations teams.
    Admin,
    /// By people who debug the daemon; absent in production.
    Debug,
}

impl Exposure {
    /// The label in metrics and in the API reference.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Internal => "internal",
            Self::Admin => "admin",
            Self::Debug => "debug",
        }
    }
}

/// One RPC and what it declares.
#[derive(Clone, Copy, Debug)]
pub struct Method {
    /// HTTP/2 path, `/claviger.v1.Service/Method`.
    pub path: &'static str,
    /// The action that must be permitted.
    pub action: Action,
    /// Its exposure label.
    pub exposure: Exposure,
}

/// One route of the public listener and what it declares.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// HTTP method.
    pub method: &'static str,
    /// Path, its parameters in braces.
    pub path: &'static str,
    /// The action that must be permitted.
    pub action: Action,
    /// Its exposure label.
    pub exposure: Exposure,
}

include!(concat!(env!("OUT_DIR"), "/actions.rs"));

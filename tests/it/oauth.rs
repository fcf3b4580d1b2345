//! The OAuth endpoints of the public listener, over HTTPS as clients use them. R-OAUTH-1, R-OAUTH-2, R-OAUTH-5.

mod bad_input;
mod coalescing;
mod ends;
mod introspection;
mod metadata;
mod methods;
pub mod realm;
mod registry;
mod smuggling;
mod stock;

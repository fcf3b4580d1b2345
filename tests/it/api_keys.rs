//! API keys: made here, shown once, worth what their owner holds at the moment, and ended in time. R-OAUTH-2 to R-OAUTH-5.

mod calls;
mod commands;
mod pepper;
mod port;
mod room;
mod time;
mod worth;

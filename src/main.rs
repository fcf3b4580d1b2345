//! Parses arguments, hands over, returns the exit code.

use std::process::ExitCode;

/// Signing is short-lived allocations on many threads; the system's allocator spends a tenth of the time on them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    claviger::cli::main()
}

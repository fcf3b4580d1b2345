//! Parses arguments, hands over, returns the exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    claviger::cli::main()
}

//! `claviger tenant proof`: checks a proof of destruction, without a daemon and without its database.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::{
    cli::{
        exit::{Exit, Failure, Result},
        input, output,
    },
    erasure::proof,
};

/// Check proofs of destruction
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Check the signature of a proof and print what it says; exit code 0 when it is good, 1 when not
    Verify(Verify),
}

#[derive(Args, Debug)]
pub struct Verify {
    /// The proof, as `claviger tenant destroy get --proof` writes it
    file: PathBuf,
    /// Public key of audit.checkpoint.key, as `claviger key get` shows it; once for each version that may have signed
    #[arg(long, value_name = "PEM", required = true)]
    key: Vec<PathBuf>,
}

/// Runs `claviger tenant proof …`.
pub fn run(command: Command) -> Result<Exit> {
    let Command::Verify(args) = command;
    let keys = args.key.iter().map(|path| input::public_key("--key", path));
    let keys = keys.collect::<Result<Vec<_>>>()?;
    let file = args.file.display();
    let bytes = std::fs::read(&args.file).map_err(|e| Failure::usage(format!("{file}: {e}")))?;
    let no = |why: &str| Failure::new(Exit::No, format!("{file}: {why}"));
    // What is not UTF-8 is not signed.
    let text = String::from_utf8(bytes).map_err(|_| no("this is no proof of destruction"))?;
    let said = proof::verify(&text, &keys).map_err(no)?;
    output::print(&format!("{said}\nThe signature is good.\n"))?;
    Ok(Exit::Ok)
}

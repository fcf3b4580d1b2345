//! stub
use super::exit::{Exit, Failure, Result};
use std::path::PathBuf;
/// Run
#[derive(clap::Args, Debug)]
pub struct Args {}
pub async fn run(_: Args, _: Option<PathBuf>) -> Result<Exit> {
    Err(Failure::other("no"))
}

//! Starts the command line; nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    parsfs::cli::run(std::env::args_os())
}

//! Starts the command line; nothing else.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    parsfs::cli::run(std::env::args_os())
}

//! Where a process's log goes: always to its stderr, which for a daemon is its log file.

use std::io::{self, IsTerminal};
use std::panic;

use tracing_subscriber::EnvFilter;

/// Starts the log. `PARSFS_LOG` chooses what is told; without it, `level`.
pub(super) fn start(level: &str) {
    let filter = EnvFilter::try_from_env("PARSFS_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    // It fails only if a log has been started, which then stays.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(colours)
        .with_target(false)
        .try_init();
    // Panics are caught at the edge of a request; where they came from belongs in the log.
    panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
}

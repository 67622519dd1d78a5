//! The TOML of `mount-configs/`, typed; every error names the key.

//! A directory for one test, and nothing left of it when the test ends, however it ends.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::mounts;

/// A directory that goes away with all that was mounted below it. `integration/test` clears those of runs that were
/// killed: it knows them by the name's beginning and by the process id in `owner`.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Scratch {
        assert!(
            rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists(),
            "the mount tests need root and /dev/fuse; `integration/test` tells how to run them"
        );
        let root = tempfile::Builder::new()
            .prefix("parsfs-test.")
            .tempdir()
            .expect("a temporary directory")
            .keep();
        let root = root.canonicalize().expect("the temporary directory");
        // pjdfstest changes to users who must be able to get here.
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).expect("chmod");
        fs::write(root.join("owner"), format!("{}\n", std::process::id())).expect("owner");
        Scratch(root)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Makes a directory.
    pub fn directory(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(&path).expect("a directory in the scratch directory");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        mounts::clear(&self.0);
        if std::env::var_os("PARSFS_TEST_KEEP").is_some() && std::thread::panicking() {
            eprintln!("kept: {}", self.0.display());
        } else {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

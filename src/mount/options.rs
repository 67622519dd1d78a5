//! Mount options, as `-o` and fstab write them. What only mount(8), systemd or fstab are meant by is passed over; what
//! nobody knows is an error, because an option that does nothing hides a mistake.

use std::path::PathBuf;

use fuser::MountOption;

use crate::config::LostReads;

/// Options of one mount. Those that are not given are the config's to decide.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// `ro`, `rw`
    pub read_only: bool,
    /// `force`: go on writing with fewer than half of the disks.
    pub force: bool,
    /// `allow_other`, `noallow_other`
    pub allow_other: Option<bool>,
    /// `dev`, `nodev`
    pub dev: Option<bool>,
    /// `suid`, `nosuid`
    pub suid: Option<bool>,
    /// `noexec`
    pub no_exec: bool,
    /// `sync`, `dirsync`, `noatime`: flags that the kernel is told of.
    pub kernel: Vec<KernelFlag>,
    /// `log=FILE`
    pub log: Option<PathBuf>,
    /// `lost=mend`, `lost=zero`, `lost=error`
    pub lost: Option<LostReads>,
}

/// A flag of mount(2) that is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelFlag {
    /// `sync`
    Sync,
    /// `dirsync`
    DirSync,
    /// `noatime`
    NoAtime,
}

/// An option that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// Nobody knows it.
    #[error(
        "unknown mount option {0:?}; there are ro, rw, force, allow_other, noallow_other, [no]dev, [no]suid, [no]exec, \
         [no]atime, sync, async, dirsync, log=FILE and lost=mend, lost=zero, lost=error; all else is set in the config"
    )]
    Unknown(String),
    /// `remount`: a mount has the options that it was made with.
    #[error("parsfs cannot remount: unmount, and mount with the new options")]
    Remount,
}

impl MountOptions {
    /// Reads a list of options, separated by commas; a later one overrides an earlier one. With `sloppy` (mount -s)
    /// unknown ones are passed over.
    pub fn parse(&mut self, list: &str, sloppy: bool) -> Result<(), OptionError> {
        for option in list
            .split(',')
            .map(str::trim)
            .filter(|option| !option.is_empty())
        {
            match option {
                "ro" => self.read_only = true,
                "rw" => self.read_only = false,
                "force" => self.force = true,
                "allow_other" => self.allow_other = Some(true),
                "noallow_other" => self.allow_other = Some(false),
                "dev" => self.dev = Some(true),
                "nodev" => self.dev = Some(false),
                "suid" => self.suid = Some(true),
                "nosuid" => self.suid = Some(false),
                "exec" => self.no_exec = false,
                "noexec" => self.no_exec = true,
                "sync" => self.kernel.push(KernelFlag::Sync),
                "async" => self.kernel.retain(|flag| *flag != KernelFlag::Sync),
                "dirsync" => self.kernel.push(KernelFlag::DirSync),
                "noatime" => self.kernel.push(KernelFlag::NoAtime),
                "atime" => self.kernel.retain(|flag| *flag != KernelFlag::NoAtime),
                // Passed over, it would be another mount.
                "remount" => return Err(OptionError::Remount),
                _ => {
                    if let Some(file) = option.strip_prefix("log=") {
                        self.log = Some(PathBuf::from(file));
                    } else if let Some(Ok(lost)) = option.strip_prefix("lost=").map(str::parse) {
                        self.lost = Some(lost);
                    } else if !is_for_others(option) && !sloppy {
                        return Err(OptionError::Unknown(option.to_string()));
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether changes of names are to be durable before they are answered. The kernel does not ask for that: nothing of
    /// the flags reaches a FUSE daemon.
    pub(super) fn syncs_names(&self) -> bool {
        let asks = |flag: &KernelFlag| matches!(flag, KernelFlag::Sync | KernelFlag::DirSync);
        self.kernel.iter().any(asks)
    }

    /// What fuser is to ask the kernel for.
    pub(super) fn for_kernel(&self, name: &str, dev: bool, suid: bool) -> Vec<MountOption> {
        let mut options = vec![
            MountOption::FSName(name.to_string()),
            // fuser's own `Subtype` gets lost where the kernel is asked directly, and the type would be plain `fuse`.
            MountOption::CUSTOM("subtype=parsfs".to_string()),
            MountOption::DefaultPermissions,
            if self.read_only {
                MountOption::RO
            } else {
                MountOption::RW
            },
            if self.dev.unwrap_or(dev) {
                MountOption::Dev
            } else {
                MountOption::NoDev
            },
            if self.suid.unwrap_or(suid) {
                MountOption::Suid
            } else {
                MountOption::NoSuid
            },
        ];
        if self.no_exec {
            options.push(MountOption::NoExec);
        }
        for flag in &self.kernel {
            let flag = match flag {
                KernelFlag::Sync => MountOption::Sync,
                KernelFlag::DirSync => MountOption::DirSync,
                KernelFlag::NoAtime => MountOption::NoAtime,
            };
            if !options.contains(&flag) {
                options.push(flag);
            }
        }
        options
    }
}

/// Whether an option is meant for mount(8), systemd or the kernel's defaults.
fn is_for_others(option: &str) -> bool {
    const EXACT: [&str; 21] = [
        "defaults",
        "auto",
        "noauto",
        "user",
        "nouser",
        "users",
        "owner",
        "group",
        "nofail",
        "_netdev",
        "atime",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
        "diratime",
        "nodiratime",
        "lazytime",
        "nolazytime",
        "default_permissions",
        "silent",
    ];
    EXACT.contains(&option)
        || ["x-", "X-", "comment=", "user=", "uhelper=", "helper="]
            .iter()
            .any(|prefix| option.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(list: &str) -> MountOptions {
        let mut options = MountOptions::default();
        options.parse(list, false).unwrap();
        options
    }

    #[test]
    fn options_of_fstab_are_taken() {
        let options = parsed(
            "defaults,noauto,nofail,_netdev,x-systemd.automount,x-gvfs-hide,user=root,comment=a,rw,dev,suid,exec,noatime,\
             relatime,,",
        );
        assert!(!options.read_only);
        assert_eq!(
            (options.dev, options.suid, options.no_exec),
            (Some(true), Some(true), false)
        );
        assert_eq!(options.kernel, [KernelFlag::NoAtime]);
    }

    #[test]
    fn later_ones_override() {
        assert!(parsed("rw,ro").read_only);
        assert!(!parsed("ro,rw").read_only);
        assert_eq!(parsed("allow_other,noallow_other").allow_other, Some(false));
        assert_eq!(parsed("noatime,atime").kernel, []);
    }

    #[test]
    fn unknown_ones_are_named_unless_sloppy() {
        let mut options = MountOptions::default();
        let error = options.parse("ro,colour=red", false).unwrap_err();
        assert!(error.to_string().contains("colour=red"));
        assert!(options.parse("ro,colour=red", true).is_ok());
        assert_eq!(parsed("log=/x/y.log").log, Some(PathBuf::from("/x/y.log")));
        assert_eq!(parsed("lost=error,lost=zero").lost, Some(LostReads::Zero));
        assert_eq!(parsed("ro").lost, None);
        assert!(options.parse("lost=nothing", false).is_err());
    }

    #[test]
    fn a_remount_is_refused_by_what_to_do_instead() {
        for sloppy in [false, true] {
            let refused = MountOptions::default().parse("rw,remount", sloppy);
            let told = refused.unwrap_err().to_string();
            assert!(told.contains("cannot remount: unmount"), "{told}");
        }
    }

    #[test]
    fn the_kernel_is_asked_without_contradictions() {
        let options = parsed("sync,sync,ro").for_kernel("vms", true, false);
        assert!(options.contains(&MountOption::RO) && !options.contains(&MountOption::RW));
        assert!(options.contains(&MountOption::Dev) && options.contains(&MountOption::NoSuid));
        assert_eq!(
            options
                .iter()
                .filter(|option| **option == MountOption::Sync)
                .count(),
            1
        );
    }
}

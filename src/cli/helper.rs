//! parsfs as mount(8) calls it. `mount -t fuse.parsfs CONFIG MOUNTPOINT` finds either a link named `mount.fuse.parsfs` and
//! calls it with `CONFIG MOUNTPOINT [-sfnv] [-o OPTIONS] [-t TYPE]`, or mount.fuse3, which calls
//! `parsfs CONFIG MOUNTPOINT [-o OPTIONS]` through a shell. Both become the command `parsfs mount`; a link named
//! `umount.fuse.parsfs` becomes `parsfs umount`.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use crate::mount::options::{MountOptions, OptionError};

pub(super) const COMMANDS: [&str; 14] = [
    "init",
    "mount",
    "umount",
    "status",
    "inspect",
    "rescue",
    "classify",
    "plan",
    "scrub",
    "rebalance",
    "disk",
    "task",
    "fsck",
    "help",
];

/// Gives the arguments as the command line has them; `None` if there is nothing to do (`mount -f`). Arguments that are
/// no call of mount(8) come back as they are.
pub(super) fn translate(arguments: Vec<OsString>) -> Result<Option<Vec<OsString>>, String> {
    let program = arguments
        .first()
        .cloned()
        .unwrap_or_else(|| "parsfs".into());
    let called = Path::new(&program)
        .file_name()
        .and_then(OsStr::to_str)
        .unwrap_or_default();
    let rest = arguments.get(1..).unwrap_or_default();
    let umount = called.starts_with("umount.");
    let direct = called.starts_with("mount.");
    if !umount && !direct && !is_mount_call(rest) {
        return Ok(Some(arguments));
    }
    let call = Call::parse(rest)?;
    // To umount(8) the same letter is force, which is what a busy mount of this kind does not need.
    if call.fake && !umount {
        return Ok(None);
    }
    let mut translated = vec![program];
    if umount {
        let [mountpoint] = call.operands.as_slice() else {
            return Err("usage: umount.fuse.parsfs MOUNTPOINT [-flnrv]".to_string());
        };
        translated.extend(["umount".into(), mountpoint.clone()]);
        if call.lazy {
            translated.push("--lazy".into());
        }
        return Ok(Some(translated));
    }
    let [config, mountpoint] = call.operands.as_slice() else {
        return Err("usage: mount.fuse.parsfs CONFIG MOUNTPOINT [-sfnv] [-o OPTIONS]".to_string());
    };
    translated.extend(["mount".into(), config.clone(), mountpoint.clone()]);
    if call.sloppy {
        translated.push("--sloppy".into());
    }
    for list in call.options {
        let list = if direct { list } else { as_asked(&list) };
        translated.extend(["-o".into(), list]);
    }
    Ok(Some(translated))
}

/// Options without `dev` and `suid`, which mount.fuse3 puts there by itself where the line says nothing; the config
/// decides then. What the line forbids, it passes on.
fn as_asked(list: &OsStr) -> OsString {
    let text = list.to_string_lossy();
    let asked: Vec<&str> = text
        .split(',')
        .filter(|option| !matches!(*option, "dev" | "suid"))
        .collect();
    OsString::from(asked.join(","))
}

/// Whether the arguments are those of mount.fuse3: two paths first and no command.
fn is_mount_call(rest: &[OsString]) -> bool {
    let [first, second, ..] = rest else {
        return false;
    };
    let is_option = |argument: &OsString| argument.as_encoded_bytes().starts_with(b"-");
    !is_option(first) && !is_option(second) && !COMMANDS.iter().any(|command| first == command)
}

#[derive(Default)]
struct Call {
    operands: Vec<OsString>,
    options: Vec<OsString>,
    sloppy: bool,
    fake: bool,
    lazy: bool,
}

impl Call {
    fn parse(rest: &[OsString]) -> Result<Call, String> {
        let mut call = Call::default();
        let mut arguments = rest.iter();
        while let Some(argument) = arguments.next() {
            let text = argument.to_string_lossy();
            match text.as_ref() {
                "-o" => {
                    let list = arguments.next().ok_or("-o needs a list of options")?;
                    call.options.push(list.clone());
                }
                "-t" | "-N" => {
                    arguments
                        .next()
                        .ok_or_else(|| format!("{text} needs a value"))?;
                }
                _ if text.len() > 2 && text.starts_with("-o") => {
                    call.options.push(OsString::from(&text[2..]));
                }
                _ if text.len() > 1 && text.starts_with('-') => {
                    for flag in text.chars().skip(1) {
                        match flag {
                            's' => call.sloppy = true,
                            'f' => call.fake = true,
                            'l' => call.lazy = true,
                            'n' | 'v' | 'r' | 'w' => {}
                            _ => return Err(format!("unknown flag {text:?}")),
                        }
                    }
                }
                _ => call.operands.push(argument.clone()),
            }
        }
        Ok(call)
    }
}

/// Reads the lists of several `-o`.
pub(super) fn options(lists: &[String], sloppy: bool) -> Result<MountOptions, OptionError> {
    let mut options = MountOptions::default();
    for list in lists {
        options.parse(list, sloppy)?;
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(arguments: &[&str]) -> Result<Option<Vec<String>>, String> {
        let arguments = arguments.iter().map(OsString::from).collect();
        Ok(translate(arguments)?.map(|list| {
            list.into_iter()
                .map(|argument| argument.into_string().unwrap())
                .collect()
        }))
    }

    #[test]
    fn commands_stay_as_they_are() {
        for arguments in [
            vec!["parsfs"],
            vec!["parsfs", "--help"],
            vec!["parsfs", "mount", "a.toml", "/mnt", "-o", "ro"],
            vec!["parsfs", "status", "/mnt"],
            vec!["parsfs", "a.toml"],
        ] {
            assert_eq!(translated(&arguments).unwrap().unwrap(), arguments);
        }
    }

    #[test]
    fn calls_of_mount_become_the_command() {
        assert_eq!(
            translated(&["parsfs", "/etc/v.toml", "/mnt", "-o", "rw,dev"])
                .unwrap()
                .unwrap(),
            ["parsfs", "mount", "/etc/v.toml", "/mnt", "-o", "rw"]
        );
        assert_eq!(
            translated(&["parsfs", "v", "/mnt", "-o", "nodev,suid,nosuid,log=/a"])
                .unwrap()
                .unwrap(),
            ["parsfs", "mount", "v", "/mnt", "-o", "nodev,nosuid,log=/a"]
        );
        assert_eq!(
            translated(&["mount.fuse.parsfs", "v", "/mnt", "-o", "dev,suid"])
                .unwrap()
                .unwrap(),
            ["mount.fuse.parsfs", "mount", "v", "/mnt", "-o", "dev,suid"]
        );
        assert_eq!(
            translated(&[
                "/sbin/mount.fuse.parsfs",
                "v",
                "/mnt",
                "-sn",
                "-oro",
                "-t",
                "fuse.parsfs"
            ])
            .unwrap()
            .unwrap(),
            [
                "/sbin/mount.fuse.parsfs",
                "mount",
                "v",
                "/mnt",
                "--sloppy",
                "-o",
                "ro"
            ]
        );
        assert_eq!(
            translated(&["umount.fuse.parsfs", "/mnt", "-l"])
                .unwrap()
                .unwrap(),
            ["umount.fuse.parsfs", "umount", "/mnt", "--lazy"]
        );
        assert_eq!(
            translated(&["umount.fuse.parsfs", "/mnt", "-nf"])
                .unwrap()
                .unwrap(),
            ["umount.fuse.parsfs", "umount", "/mnt"]
        );
        assert_eq!(
            translated(&["mount.parsfs", "v", "/mnt", "-f"]).unwrap(),
            None
        );
    }

    #[test]
    fn wrong_calls_are_told() {
        assert!(translated(&["mount.parsfs", "v"]).is_err());
        assert!(translated(&["mount.parsfs", "v", "/mnt", "-o"]).is_err());
        assert!(translated(&["mount.parsfs", "v", "/mnt", "-z"]).is_err());
        assert!(translated(&["umount.parsfs"]).is_err());
        assert!(translated(&["mount.parsfs", "v", "/mnt", "-ö"]).is_err());
    }
}

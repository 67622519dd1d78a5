//! Every error a config can have, the defaults, and the configs that are shipped.

use std::fs;
use std::path::Path;

use super::*;
use crate::guest::PageClass;

const SIX: &str = r#"
[volume]
name = "vms"
[[disk]]
path = "/mnt/disk1"
[[disk]]
path = "/mnt/disk2"
[[disk]]
path = "/mnt/disk3"
[[disk]]
path = "/mnt/disk4"
[[disk]]
path = "/mnt/disk5"
[[disk]]
path = "/mnt/disk6"
"#;

fn parse(text: &str) -> Result<Config> {
    Config::parse(text, Path::new("/etc/parsfs/vms.toml"))
}

/// The message for six disks with `more` behind them.
fn refused(more: &str) -> String {
    let error = parse(&format!("{SIX}\n{more}")).unwrap_err().to_string();
    assert!(
        error.contains("/etc/parsfs/vms.toml"),
        "names the file: {error}"
    );
    error
}

#[test]
fn name_and_disks_are_enough() {
    let config = parse(SIX).unwrap();
    assert_eq!(config.name, "vms");
    assert_eq!(config.disks.len(), 6);
    assert_eq!(config.disks[2].name, "disk3");
    assert_eq!(config.policy.critical, Code { k: 4, m: 2 });
    assert_eq!(config.policy.expendable, Code { k: 1, m: 0 });
    assert_eq!(config.policy.compression, Compression::Zstd(1));
    assert_eq!(config.policy.block_size, 128 << 10);
    assert_eq!(config.commit, CommitMode::Close);
    assert_eq!(config.memory.cache, 64 << 20);
    assert_eq!(config.memory.write, 128 << 20);
    assert!(config.mount.allow_other);
    assert_eq!(config.mount.lost, LostReads::Mend);
    assert_eq!(config.log, None);
}

#[test]
fn every_key_is_read() {
    let config = parse(&format!(
        "{SIX}\nname = \"last\"\n[policy]\ncritical = \"1+2\"\nexpendable = \"1+1\"\ncompression = \"lz4\"\n\
         block_size = 65536\n[commit]\nmode = \"background\"\n[memory]\ncache = \"1G\"\nwrite = \"32M\"\n\
         [mount]\nallow_other = false\ndev = true\nsuid = true\nthreads = 3\nread_ahead = \"1M\"\nlost = \"zero\"\n\
         [log]\nfile = \"here.log\"\n"
    ))
    .unwrap();
    assert_eq!(config.disks[5].name, "last");
    assert_eq!(config.policy.critical, Code { k: 1, m: 2 });
    assert_eq!(config.policy.expendable, Code { k: 1, m: 1 });
    assert_eq!(config.policy.compression, Compression::Lz4);
    assert_eq!(config.policy.block_size, 64 << 10);
    assert_eq!(config.commit, CommitMode::Background);
    assert_eq!(config.memory.cache, 1 << 30);
    assert_eq!(config.memory.write, 32 << 20);
    assert_eq!(
        config.mount,
        MountConfig {
            allow_other: false,
            dev: true,
            suid: true,
            threads: 3,
            read_ahead: 1 << 20,
            lost: LostReads::Zero,
        }
    );
    assert_eq!(
        config.log.as_deref(),
        Some(Path::new("/etc/parsfs/here.log"))
    );
}

#[test]
fn unknown_keys_are_named_and_the_known_ones_listed() {
    let error = refused("[policy]\ncritcal = \"4+2\"");
    assert!(
        error.contains("critcal") && error.contains("expendable"),
        "{error}"
    );
    assert!(refused("[polcy]\n").contains("polcy"));
    assert!(refused("size = 1").contains("size"));
    assert!(
        parse("[volume]\nname='a'\ncolour='b'")
            .unwrap_err()
            .to_string()
            .contains("colour")
    );
}

#[test]
fn what_is_missing_is_named() {
    assert!(parse("").unwrap_err().to_string().contains("volume"));
    assert!(parse("[volume]").unwrap_err().to_string().contains("name"));
    assert!(
        parse("[volume]\nname='a'\n[[disk]]")
            .unwrap_err()
            .to_string()
            .contains("path")
    );
    assert!(matches!(
        parse("[volume]\nname='a'"),
        Err(ConfigError::NoDisks { .. })
    ));
    assert!(
        parse("[volume]\nname='a'\n[[disk]]\npath=''")
            .unwrap_err()
            .to_string()
            .contains("disk.path")
    );
}

#[test]
fn no_toml_is_told_with_its_line() {
    let error = refused("[policy\ncritical");
    assert!(error.contains("[policy"), "{error}");
    assert!(refused("[memory]\ncache = true").contains("cache = true"));
    assert!(refused("[memory]\ncache = -5").contains("memory.cache"));
}

#[test]
fn codes_are_judged() {
    let error = refused("[policy]\ncritical = \"5+2\"");
    assert!(
        error.contains("policy.critical")
            && error.contains("7 disks")
            && error.contains("6 [[disk]]"),
        "{error}"
    );
    assert!(refused("[policy]\ncritical = \"four\"").contains("policy.critical"));
    assert!(refused("[policy]\ncritical = \"40+2\"").contains("at most 32"));
    let error = refused("[policy]\ncritical = \"4+1\"\nexpendable = \"1+2\"");
    assert!(
        error.contains("policy.expendable") && error.contains("at most 1"),
        "{error}"
    );
}

#[test]
fn the_other_values_are_judged() {
    for (more, key) in [
        ("[policy]\ncompression = \"gzip\"", "policy.compression"),
        ("[policy]\ncompression = \"zstd:99\"", "policy.compression"),
        ("[policy]\nblock_size = \"100K\"", "policy.block_size"),
        ("[policy]\nblock_size = \"2K\"", "policy.block_size"),
        ("[policy]\nblock_size = \"1M\"", "policy.block_size"),
        ("[commit]\nmode = \"never\"", "commit.mode"),
        ("[memory]\ncache = \"64Q\"", "memory.cache"),
        ("[memory]\nwrite = \"1K\"", "memory.write"),
        ("[mount]\nthreads = 65", "mount.threads"),
        ("[mount]\nread_ahead = \"far\"", "mount.read_ahead"),
        ("[mount]\nlost = \"nothing\"", "mount.lost"),
        ("name = \"a b\"", "disk.name"),
    ] {
        let error = refused(more);
        assert!(error.contains(key), "{more}: {error}");
    }
    let error = parse("[volume]\nname='a,b'\n[[disk]]\npath='/a'")
        .unwrap_err()
        .to_string();
    assert!(error.contains("volume.name"), "{error}");
}

#[test]
fn no_disk_comes_twice() {
    assert!(matches!(
        parse(&format!("{SIX}[[disk]]\npath = \"/mnt/./disk3/\"")),
        Err(ConfigError::DuplicatePath { .. })
    ));
    assert!(matches!(
        parse(&format!(
            "{SIX}name = \"a\"\n[[disk]]\npath = \"/x\"\nname = \"a\""
        )),
        Err(ConfigError::DuplicateName { .. })
    ));
}

#[test]
fn names_are_made_up_where_none_is_given() {
    let config = parse(
        "[volume]\nname='a'\n[[disk]]\npath='/a/data'\n[[disk]]\npath='/b/data'\n[[disk]]\npath='/c'\nname='data'\n\
         [[disk]]\npath='/d/..'\n",
    )
    .unwrap();
    let names: Vec<&str> = config.disks.iter().map(|disk| disk.name.as_str()).collect();
    assert_eq!(names, ["data-2", "data-3", "data", "disk"]);
    assert_eq!(config.policy.critical, Code { k: 2, m: 2 });
}

#[test]
fn disks_on_one_device_are_warned_of() {
    let directory = tempfile::tempdir().unwrap();
    for disk in ["a", "b"] {
        fs::create_dir(directory.path().join(disk)).unwrap();
    }
    let file = directory.path().join("config.toml");
    fs::write(
        &file,
        "[volume]\nname='v'\n[[disk]]\npath='a'\n[[disk]]\npath='b'\n[policy]\ncritical='2+0'",
    )
    .unwrap();
    let config = Config::load(&file).unwrap();
    assert!(config.disks[0].path.is_absolute());
    let warnings = config.warnings();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("disks a and b lie on one device"));
    assert!(warnings[1].contains("2+0"));
}

#[test]
fn a_config_that_is_not_there_is_named() {
    let error = Config::load(Path::new("/nowhere/parsfs.toml"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("/nowhere/parsfs.toml"), "{error}");
}

#[test]
fn every_shipped_config_is_right() {
    let mut seen = 0;
    for entry in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/mount-configs")).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            let config = Config::load(&path).unwrap_or_else(|error| panic!("{error}"));
            assert!(config.policy.critical.m > 0, "{}", path.display());
            seen += 1;
        }
    }
    assert!(seen >= 6);
}

#[test]
fn what_is_expendable_is_read_and_judged() {
    let policy = |more: &str| parse(&format!("{SIX}\n[policy]\n{more}")).unwrap().policy;
    assert_eq!(policy("").tiering, Tiering::default());
    assert!(policy("expendable = \"drop\"").tiering.drop);
    assert_eq!(policy("expendable = \"drop\"").expendable_word(), "drop");
    assert_eq!(policy("").expendable_word(), "1+0");
    let kept = policy("keep_cache = true").tiering.expendable();
    assert!(!kept.contains(PageClass::CacheClean) && kept.contains(PageClass::Offline));
    let listed = policy("expendable_classes = [\"free\"]").tiering.classes;
    assert_eq!(listed.to_string(), "free");
    let error = refused("[policy]\nexpendable_classes = [\"free\", \"anon\"]");
    assert!(
        error.contains("policy.expendable_classes") && error.contains("anon"),
        "{error}"
    );
}

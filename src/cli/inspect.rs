//! `parsfs inspect`: what one file in a mount is made of, and which disk holds what.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::failure::Failure;
use super::log;
use super::table::{Align, Table, bytes};
use crate::mount::control::client::Client;
use crate::mount::control::{Request, Response};
use crate::mount::mountinfo;
use crate::volume::Inspection;

/// Show what a file in a mount is made of, and which disk holds what
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  parsfs inspect /mnt/vms/guest.save
  parsfs inspect --json /mnt/vms/guest.save | jq .state

Exit codes: 0 shown, 1 failed, 2 wrong usage.")]
pub(super) struct Inspect {
    /// A file in a mounted volume
    file: PathBuf,
    /// For programs
    #[arg(long)]
    json: bool,
}

impl Inspect {
    pub(super) fn run(self) -> Result<(), Failure> {
        log::start("warn");
        let what = self.file.display().to_string();
        let metadata =
            fs::symlink_metadata(&self.file).map_err(Failure::io(format!("look at {what}")))?;
        if !metadata.is_file() {
            let kind = match metadata.file_type() {
                kind if kind.is_dir() => "a directory",
                kind if kind.is_symlink() => "a symbolic link",
                _ => "a special file",
            };
            return Err(Failure::Other(format!(
                "{what} is {kind}; only regular files have bytes on disks to look at"
            )));
        }
        let device = metadata.dev();
        let device = format!(
            "{}:{}",
            rustix::fs::major(device),
            rustix::fs::minor(device)
        );
        let mount = mountinfo::all()
            .map_err(Failure::io("read the table of mounts"))?
            .into_iter()
            .find(|mount| mount.is_parsfs() && mount.device == device)
            .ok_or_else(|| {
                Failure::Other(format!("{what} does not lie in a mounted parsfs volume"))
            })?;
        let mut daemon = Client::of_device(&device, mount.user, &what)?;
        let Response::Inspection(inspection) = daemon.ask(&Request::Inspect {
            file: metadata.ino(),
        })?
        else {
            return Err(Failure::other_answer());
        };
        if self.json {
            println!(
                "{}",
                serde_json::to_string_pretty(&inspection)
                    .map_err(|error| Failure::Other(error.to_string()))?
            );
        } else {
            print!("{}", describe(&what, &inspection));
        }
        Ok(())
    }
}

fn describe(what: &str, file: &Inspection) -> String {
    let mut text = format!(
        "{what}: file {}, {}, {}\n",
        file.file,
        bytes(file.size),
        file.state
    );
    if file.paths.len() > 1 {
        text.push_str(&format!("also known as {}\n", file.paths.join(", ")));
    }
    if let Some(format) = &file.format {
        text.push_str(&match (&file.guest, &file.no_guest) {
            (Some(guest), _) => format!("{format}, guest: {guest}\n"),
            (None, Some(why)) => format!("{format}, all of it critical: {why}\n"),
            (None, None) => format!("{format}\n"),
        });
    }
    text.push_str(&format!(
        "{} extents, {} blocks in {} windows ({}), {} segment sets\n{} of holes, {} in the metadata\n",
        file.extents,
        file.blocks,
        file.windows,
        if file.codes.is_empty() { "no code".to_string() } else { file.codes.join(", ") },
        file.sets,
        bytes(file.hole_bytes),
        bytes(file.inline_bytes)
    ));

    if !file.lost.is_empty() {
        let mut lost = Table::new(&[
            ("lost", Align::Left),
            ("pages", Align::Right),
            ("bytes", Align::Right),
            ("reads as", Align::Left),
        ]);
        for line in &file.lost {
            lost.row([
                line.class.clone(),
                line.pages.to_string(),
                bytes(line.bytes),
                line.reads.clone(),
            ]);
        }
        text.push_str(&format!("\n{lost}"));
    }

    let mut tiers = Table::new(&[
        ("tier", Align::Left),
        ("logical", Align::Right),
        ("stored", Align::Right),
    ]);
    for tier in &file.tiers {
        tiers.row([tier.tier.clone(), bytes(tier.logical), bytes(tier.stored)]);
    }
    tiers.row([
        "parity".to_string(),
        String::new(),
        bytes(file.parity_bytes),
    ]);
    tiers.row([
        "manifest".to_string(),
        String::new(),
        bytes(file.metadata_bytes),
    ]);
    text.push_str(&format!("\n{tiers}"));

    if !file.classes.is_empty() {
        let mut classes = Table::new(&[("class", Align::Left), ("pages", Align::Right)]);
        for (class, pages) in &file.classes {
            classes.row([class.clone(), pages.to_string()]);
        }
        text.push_str(&format!("\n{classes}"));
    }

    if !file.disks.is_empty() {
        let mut disks = Table::new(&[
            ("disk", Align::Left),
            ("blocks", Align::Right),
            ("data", Align::Right),
            ("parity", Align::Right),
        ]);
        for share in &file.disks {
            disks.row([
                share.disk.clone(),
                share.blocks.to_string(),
                bytes(share.data_bytes),
                bytes(share.parity_bytes),
            ]);
        }
        text.push_str(&format!("\n{disks}"));
    }

    if !file.window_list.is_empty() {
        let mut windows = Table::new(&[
            ("window", Align::Right),
            ("code", Align::Left),
            ("blocks", Align::Right),
            ("raw", Align::Right),
            ("stored", Align::Right),
            ("data on", Align::Left),
            ("parity on", Align::Left),
        ]);
        for window in &file.window_list {
            windows.row([
                window.no.to_string(),
                window.code.clone(),
                window.blocks.to_string(),
                bytes(window.raw),
                bytes(window.stored),
                window.columns.join(" "),
                window.parity.join(" "),
            ]);
        }
        text.push_str(&format!("\n{windows}"));
        let more = file.windows.saturating_sub(file.window_list.len() as u64);
        if more > 0 {
            text.push_str(&format!("  and {more} more windows\n"));
        }
    }
    text
}

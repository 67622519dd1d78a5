//! The requests that change a volume as a whole, answered by the volume: by the daemon that serves it, or by a command
//! that has opened it itself.

use super::{Request, Response};
use crate::volume::Volume;

/// Answers a request of these; `None` when it is none of them.
pub fn answer(volume: &Volume, request: &Request) -> Option<Response> {
    let task = |status| Response::Task(Box::new(Some(status)));
    let answered = match request {
        Request::Task { number: None } => {
            volume.task().map(|status| Response::Task(Box::new(status)))
        }
        Request::Task {
            number: Some(number),
        } => volume.task_of(*number).map(task),
        Request::CancelTask {} => volume
            .cancel_task()
            .map(|status| Response::Task(Box::new(status))),
        Request::TaskRate { rate } => volume
            .set_task_rate(*rate)
            .map(|status| Response::Task(Box::new(status))),
        Request::Scrub { rate } => volume.scrub(*rate).map(task),
        Request::Rebalance { rate } => volume.rebalance(*rate).map(task),
        Request::RemoveDisk {
            disk,
            give_up,
            gone,
            rate,
        } => volume.remove_disk(disk, *give_up, gone, *rate).map(task),
        Request::ReplaceDisk {
            disk,
            path,
            name,
            give_up,
            gone,
            rate,
        } => volume
            .replace_disk(disk, path, name.as_deref(), *give_up, gone, *rate)
            .map(task),
        Request::AddDisk { path, name } => volume
            .add_disk(path, name.as_deref())
            .map(|(disk, warnings)| {
                let mut message = format!(
                    "disk {disk} has joined the volume; `parsfs rebalance` moves data to it, new files use it at once"
                );
                for warning in warnings {
                    message.push_str(&format!("\nwarning: {warning}"));
                }
                Response::Said { message }
            }),
        Request::DiskOnline { disk } => volume
            .bring_disk_online(disk)
            .map(|message| Response::Said { message }),
        Request::Pid {}
        | Request::Status {}
        | Request::Inspect { .. }
        | Request::Commit {}
        | Request::AwaitEnd {} => return None,
    };
    Some(answered.unwrap_or_else(|error| Response::Error {
        message: error.to_string(),
    }))
}

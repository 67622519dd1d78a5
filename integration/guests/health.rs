//! Whether a guest of a scene is well after it was resumed, by its own word: it reads all its files against what they must
//! hold, touches files in every way for the first time, takes all the memory that it can get, has its programs finish,
//! unmounts its disks and looks into its kernel's log.

use std::time::Duration;

use super::image::FILE_SYSTEMS;
use super::serial::Serial;

/// What is wrong with the guest; it may take so long for each order.
pub fn complaints(guest: &mut Serial, patience: Duration) -> Vec<String> {
    ask(guest, orders(), patience)
}

/// The same of a guest that has no agent: busybox alone looks at one file system and at memory.
pub fn complaints_without_agent(guest: &mut Serial, patience: Duration) -> Vec<String> {
    let orders = [
        "cd /m/ext4 && md5sum -cs sums",
        "cd /m/ext4 && md5sum -cs /run/written",
        "cd /run && md5sum -cs sums",
        "cd /m/ext4 && printf over | dd of=f03 bs=1 seek=100001 conv=notrunc 2>/dev/null && echo more >>f04",
        "sync; echo 3 >/proc/sys/vm/drop_caches; cd /m/ext4 && test $(md5sum -c sums 2>/dev/null | grep -c FAILED) = 2",
        "mkdir /hog && mount -t tmpfs -o size=100% tmpfs /hog",
        "dd if=/dev/zero of=/hog/all bs=1k count=$(($(awk '/MemAvailable/ {print $2}' /proc/meminfo) * 9 / 10)) 2>/dev/null",
        "test -z \"$(tr -d '\\0' </hog/all | head -c 1)\" && umount /hog",
        "cd /m/ext4 && md5sum -cs /run/written; cd / && umount /m/ext4",
        CALM,
    ];
    ask(guest, orders.map(str::to_string).to_vec(), patience)
}

/// What the kernel must not have said. That a processor stood still for long is the machine's below: an emulated one does not
/// run while the host does something else.
const CALM: &str = "! dmesg | grep -v 'soft lockup' | grep -E 'BUG|Oops|WARNING|corruption|Bad page|I/O error|CORRUPTED|pagealloc'";

/// Gives orders one by one; what is wrong is those that fail.
fn ask(guest: &mut Serial, orders: Vec<String>, patience: Duration) -> Vec<String> {
    let mut wrong = Vec::new();
    for order in orders {
        match guest.try_run(&order, patience) {
            Ok((0, _)) => {}
            Ok((status, text)) => wrong.push(format!("{order}: {status} {text}")),
            Err(text) => {
                wrong.push(format!("{order}: the guest fell silent: {text}"));
                break;
            }
        }
    }
    wrong
}

fn orders() -> Vec<String> {
    let mut orders = vec![];
    for file_system in FILE_SYSTEMS {
        let at = format!("/m/{file_system}");
        orders.push(format!("agent touch {at}/touch"));
        orders.push(format!("agent verify {at}/read"));
        orders.push(format!("agent verify {at}/written"));
        orders.push(format!(
            "{at}/bin/agent verify /run/files && {at}/bin/busybox cmp {at}/bin/busybox /bin/busybox"
        ));
    }
    orders.push("agent verify /m/ext4/dirty && agent verify /m/xfs/dirty".into());
    // Takes what is free and some of what is cache, so that free pages are handed out and folios are reclaimed.
    orders.push("agent hog $(($(awk '/MemAvailable/ {print $2}' /proc/meminfo) * 9 / 10))".into());
    orders.push("touch /run/hold; while [ ! -e /run/hold.done ]; do sleep 1; done; cat /run/hold.done; grep -q right /run/hold.done".into());
    for file_system in FILE_SYSTEMS {
        orders.push(format!("agent verify /m/{file_system}/read"));
        orders.push(format!("umount /m/{file_system}"));
    }
    orders.push(CALM.into());
    orders
}

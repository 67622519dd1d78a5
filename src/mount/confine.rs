//! Gives up what the daemon has no need of, before its first thread begins: threads keep what they start with. A bug in
//! what it does with the bytes of a guest then reaches less of the machine.

use rustix::io;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

/// What a daemon of root keeps: to mount and unmount, and to use disks and mount points that belong to others. What
/// root may do with files of its own needs no capability.
const KEPT: CapabilitySet = CapabilitySet::SYS_ADMIN.union(CapabilitySet::DAC_OVERRIDE);

/// The limit that allows a nice value of 0, as getrlimit(2) counts it.
const ORDINARY: u64 = 20;

/// Gives up every other capability for good, and the rise in rights that programs with a set-user-id bit give. A daemon
/// of another user has no capabilities, and needs that bit of `fusermount3` to unmount: it keeps what it has.
pub(super) fn give_up_privileges() -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    // Threads that make way while nobody waits for them may come back then, to where all programs begin and no further.
    let nice = getrlimit(Resource::Nice);
    if nice.current.is_some_and(|current| current < ORDINARY) {
        // Where it is refused, what is being done when somebody comes to wait ends as slowly as it began.
        let _ = setrlimit(
            Resource::Nice,
            Rlimit {
                current: Some(ORDINARY),
                maximum: nice.maximum.map(|maximum| maximum.max(ORDINARY)),
            },
        );
    }
    set_no_new_privs(true)?;
    clear_ambient_capability_set()?;
    let now = capabilities(None)?;
    // To take one out of the bounding set needs a capability that is given up below.
    if now.effective.contains(CapabilitySet::SETPCAP) {
        for capability in CapabilitySet::all().difference(KEPT).iter() {
            match remove_capability_from_bounding_set(capability) {
                // An older kernel does not know all of them.
                Ok(()) | Err(io::Errno::INVAL) => {}
                Err(error) => return Err(error),
            }
        }
    }
    set_capabilities(
        None,
        CapabilitySets {
            effective: now.effective & KEPT,
            permitted: now.permitted & KEPT,
            inheritable: CapabilitySet::empty(),
        },
    )
}

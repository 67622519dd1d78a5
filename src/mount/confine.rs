//! Gives up what the daemon has no need of, before its first thread begins: threads keep what they start with. A bug in
//! what it does with the bytes of a guest then reaches less of the machine.

use rustix::io;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

/// What a daemon of root keeps: to mount and unmount, and to use disks and mount points that belong to others. What
/// root may do with files of its own needs no capability.
const KEPT: CapabilitySet = CapabilitySet::SYS_ADMIN.union(CapabilitySet::DAC_OVERRIDE);

/// Gives up every other capability for good, and the rise in rights that programs with a set-user-id bit give. A daemon
/// of another user has no capabilities, and needs that bit of `fusermount3` to unmount: it keeps what it has.
pub(super) fn give_up_privileges() -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
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

//! The table of memory ranges in Cloud Hypervisor's `state.json`, which lies beside `memory-ranges` and says
//! where its bytes are in the guest. From Cloud Hypervisor's `vmm/src/memory_manager.rs` and
//! `vm-migration/src/protocol.rs`. Knows that one table.

use serde_json::Value;

use super::address::Gpa;
use super::layout::{Layout, RamRange};

/// The name of the memory file in a snapshot's directory.
pub const MEMORY_FILE: &str = "memory-ranges";
/// The name of the file that holds the table.
pub const STATE_FILE: &str = "state.json";

/// How deep a state may hide in strings of states.
const DEPTH: usize = 64;

/// The layout of `memory-ranges`, if the JSON has a table whose lengths add up to the file's.
pub fn layout(state: &[u8], file_length: u64) -> Option<Layout> {
    let state: Value = serde_json::from_slice(state).ok()?;
    let ranges = table(&state, DEPTH)?;
    let mut ram = 0_u64;
    let mut list = Vec::with_capacity(ranges.len());
    for range in ranges {
        let gpa = Gpa(range.get("gpa")?.as_u64()?);
        let length = range.get("length")?.as_u64()?;
        list.push(RamRange { gpa, ram, length });
        ram = ram.checked_add(length)?;
    }
    (ram == file_length).then(|| Layout::new("Cloud Hypervisor's state.json", list))?
}

/// Looks for `"memory_ranges": {"data": [...]}`, wherever the version at hand keeps it: parts of the state are
/// JSON in a string.
fn table(value: &Value, depth: usize) -> Option<Vec<Value>> {
    let depth = depth.checked_sub(1)?;
    match value {
        Value::Object(members) => {
            let here = members
                .get("memory_ranges")
                .and_then(|ranges| ranges.get("data"))
                .and_then(Value::as_array)
                .filter(|ranges| !ranges.is_empty());
            match here {
                Some(ranges) => Some(ranges.clone()),
                None => members.values().find_map(|member| table(member, depth)),
            }
        }
        Value::Array(members) => members.iter().find_map(|member| table(member, depth)),
        Value::String(text) if text.starts_with('{') && text.contains("memory_ranges") => {
            table(&serde_json::from_str(text).ok()?, depth)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_found_inside_a_string() {
        let inner = r#"{"memory_ranges":{"data":[{"gpa":0,"length":8192},{"gpa":4294967296,"length":4096}]}}"#;
        let state = serde_json::json!({
            "id": "", "snapshots": {"memory-manager": {"snapshot_data": {"state": inner}}}
        });
        let state = serde_json::to_vec(&state).unwrap();
        let layout = layout(&state, 12288).unwrap();
        assert_eq!(layout.ram_of(Gpa(1 << 32)), Some((8192, 4096)));
        assert!(
            super::layout(&state, 12289).is_none(),
            "another file's table"
        );
        assert!(super::layout(b"{}", 0).is_none());
        assert!(super::layout(&[b'['; 100_000], 0).is_none());
    }
}

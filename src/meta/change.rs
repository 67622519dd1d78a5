//! Lists of puts and deletes as bytes: the payload of a journal's records.

use super::codec::Decoder;
use super::table::{Key, Value};

/// What becomes of a key: a new value, or none.
pub(super) type Change = (Key, Option<Value>);

const DELETE: u8 = 0;
const PUT: u8 = 1;

/// Appends a change: what it is, the lengths of key and value, then both.
pub(super) fn encode(key: &[u8], value: Option<&[u8]>, into: &mut Vec<u8>) {
    into.push(if value.is_some() { PUT } else { DELETE });
    let value = value.unwrap_or_default();
    into.extend((key.len() as u32).to_le_bytes());
    into.extend((value.len() as u32).to_le_bytes());
    into.extend(key);
    into.extend(value);
}

/// All changes of a payload, in order; none if the bytes are not what `encode` makes.
pub(super) fn decode_all(payload: &[u8]) -> Option<Vec<Change>> {
    let mut decoder = Decoder(payload);
    let mut changes = Vec::new();
    while !decoder.0.is_empty() {
        let what = decoder.u8()?;
        let key_length = decoder.u32()? as usize;
        let value_length = decoder.u32()? as usize;
        let key = Key::from_bytes(decoder.bytes(key_length)?)?;
        let value = decoder.bytes(value_length)?;
        changes.push(match what {
            PUT => (key, Some(value.into())),
            DELETE if value.is_empty() => (key, None),
            _ => return None,
        });
    }
    Some(changes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::meta::Table;

    proptest! {
        #[test]
        fn changes_come_back(list: Vec<(Vec<u8>, Option<Vec<u8>>)>) {
            let mut bytes = Vec::new();
            let mut expected = Vec::new();
            for (name, value) in &list {
                let key = Key::setting(name);
                encode(key.as_bytes(), value.as_deref(), &mut bytes);
                expected.push((key, value.as_deref().map(Value::from)));
            }
            prop_assert_eq!(decode_all(&bytes), Some(expected));
        }

        #[test]
        fn any_bytes_are_changes_or_none(bytes: Vec<u8>) {
            decode_all(&bytes);
        }
    }

    #[test]
    fn lengths_that_lie_are_seen() {
        let mut bytes = Vec::new();
        encode(
            Key::table_prefix(Table::Setting).as_bytes(),
            Some(b"abc"),
            &mut bytes,
        );
        for length in 1..bytes.len() {
            assert_eq!(decode_all(&bytes[..length]), None);
        }
        bytes[5] = 0xff;
        assert_eq!(decode_all(&bytes), None);
    }
}

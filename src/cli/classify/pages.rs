//! `--pages`: one byte a page frame, for tools. The byte at place n is the class of page frame n; where the guest has no
//! memory, and where nothing is known, it is 0.

use std::io::{self, Seek, SeekFrom, Write};

use crate::volume::look::Look;

/// Frames without memory are passed over, so that they become a hole.
pub(super) fn write(look: &Look, out: &mut (impl Write + Seek)) -> io::Result<()> {
    let Some(classes) = look.classes() else {
        return Ok(());
    };
    for (frames, class) in classes.runs() {
        out.seek(SeekFrom::Start(frames.start))?;
        let mut left = frames.end - frames.start;
        let bytes = [class as u8; 4096];
        while left > 0 {
            let now = bytes.get(..left.min(4096) as usize).unwrap_or(&bytes);
            out.write_all(now)?;
            left -= now.len() as u64;
        }
    }
    Ok(())
}

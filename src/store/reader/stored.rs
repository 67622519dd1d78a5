//! Blocks as they are stored, for parity that is coded anew.

use super::{ReadError, Reader};
use crate::ids::FileId;
use crate::store::records::WindowRecord;

impl Reader {
    /// A block's stored bytes, header included and verified, off its disk or reconstructed.
    pub fn read_stored(
        &self,
        file: FileId,
        window: &WindowRecord,
        index: u16,
    ) -> Result<Vec<u8>, ReadError> {
        let wanted = self.find(file, window, index)?;
        self.stored(wanted)
            .or_else(|cause| self.rebuild(wanted, &cause))
    }
}

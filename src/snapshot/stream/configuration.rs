//! The configuration section at a QEMU stream's head: machine, page size, and the capabilities that change
//! the grammar of what follows. From QEMU's `vmstate_configuration`.

use super::{Expect, Stream, be_u32, byte};
use crate::snapshot::error::Opaque;
use crate::snapshot::ram_blocks::printable;
use crate::snapshot::runs::{Geometry, RunLog};

impl Stream {
    pub(super) fn step_configuration(&mut self, field: &[u8]) {
        match self.expect {
            Expect::MachineLength => match be_u32(field) {
                0 => self.expect(Expect::SubsectionOrSection, 1),
                length @ 1..=255 => self.expect(Expect::Machine, length as usize),
                _ => self.malformed("a machine name of more than 255 bytes"),
            },
            Expect::Machine => {
                self.machine = printable(field);
                self.expect(Expect::SubsectionOrSection, 1);
            }
            Expect::SubsectionOrSection => match byte(field) {
                0x05 => {
                    self.name.clear();
                    self.expect(Expect::SubsectionName, 1);
                }
                kind => self.section(kind),
            },
            Expect::SubsectionName => {
                if self.name.is_empty() && self.need == 1 {
                    match byte(field) {
                        0 => self.malformed("a subsection without a name"),
                        length => {
                            self.name = vec![length];
                            self.need = usize::from(length);
                        }
                    }
                } else {
                    self.name = field.to_vec();
                    self.expect(Expect::SubsectionVersion, 4);
                }
            }
            Expect::SubsectionVersion => match self.name.as_slice() {
                b"configuration/target-page-bits" => self.expect(Expect::PageBits, 4),
                b"configuration/capabilities" => self.expect(Expect::CapabilityCount, 4),
                b"configuration/uuid" => {
                    self.pass(16);
                    self.expect(Expect::SubsectionOrSection, 1);
                }
                name => {
                    let name = printable(name);
                    self.fail(Opaque::Unsupported(format!("QEMU configuration {name}")));
                }
            },
            Expect::PageBits => match be_u32(field) {
                bits @ 10..=16 => {
                    self.page_bits = bits;
                    let page_size = self.page_size();
                    let geometry = Geometry {
                        page_size,
                        ..self.log.geometry()
                    };
                    self.log = RunLog::new(geometry, 0);
                    self.expect(Expect::SubsectionOrSection, 1);
                }
                _ => self.malformed("pages of no known size"),
            },
            Expect::CapabilityCount => self.capability(be_u32(field)),
            Expect::CapabilityLength { left } => match byte(field) {
                0 => self.malformed("a capability without a name"),
                length => self.expect(Expect::Capability { left }, usize::from(length)),
            },
            Expect::Capability { left } => {
                match field {
                    b"x-ignore-shared" => self.ignore_shared = true,
                    b"mapped-ram" => self.mapped = true,
                    // Others do not change the grammar, or could not be in a file.
                    _ => {}
                }
                self.capability(left - 1);
            }
            _ => {}
        }
    }

    fn capability(&mut self, left: u32) {
        if left == 0 {
            self.expect(Expect::SubsectionOrSection, 1);
        } else {
            self.expect(Expect::CapabilityLength { left }, 1);
        }
    }
}

//! Tables of programs to jump to.

use std::os::fd::AsFd;

use super::{InsertMode, Map, Removal, TypedMap, typed_map};
use crate::error::Result;
use crate::layout::MapType;
use crate::program::Program;
use crate::spec::MapSpec;
use crate::sys;

/// A table of programs for tail calls.
///
/// The kernel empties the table when the last descriptor and pin of it is gone, even while programs
/// that jump through it are attached: keep it open, or pinned.
///
/// The kernel has no batches for this kind of map. Minimum kernel: 4.2.
#[doc(alias = "BPF_MAP_TYPE_PROG_ARRAY")]
#[derive(Debug)]
pub struct ProgramArray {
    map: Map,
}

typed_map!(ProgramArray);

impl ProgramArray {
    /// Makes a map that no object describes.
    pub fn create(name: &str, length: u32) -> Result<Self> {
        let spec =
            MapSpec::new(name, MapType::ProgramArray).entry::<u32, u32>().max_entries(length);
        Self::from_map(Map::create(&spec)?)
    }

    /// Puts a program into a slot, in place of the one that is there. All programs of a table are
    /// of one kind. [`Error::OutOfRange`](crate::Error::OutOfRange) if there is no such slot.
    pub fn set(&self, index: u32, program: &Program) -> Result<()> {
        self.map.check_index(index)?;
        let fd = sys::raw(program.as_fd());
        self.map.update(&index.to_ne_bytes(), &fd.to_ne_bytes(), InsertMode::Any)
    }

    /// The kernel's number of the program in a slot.
    pub fn program_id(&self, index: u32) -> Result<Option<u32>> {
        self.map.check_index(index)?;
        self.map.lookup(&index.to_ne_bytes())
    }

    /// Empties a slot: a jump there goes on after the call.
    pub fn clear(&self, index: u32) -> Result<Removal> {
        self.map.check_index(index)?;
        self.map.delete(&index.to_ne_bytes())
    }
}

impl TypedMap for ProgramArray {
    fn from_map(map: Map) -> Result<Self> {
        map.expect(MapType::ProgramArray, size_of::<u32>(), size_of::<u32>())?;
        Ok(Self { map })
    }

    fn as_map(&self) -> &Map {
        &self.map
    }
}

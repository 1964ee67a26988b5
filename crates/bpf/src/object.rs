//! A loaded object.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::map::{Map, TypedMap};
use crate::program::Program;

/// The maps and programs of a loaded object.
///
/// Dropping it closes its descriptors: maps that are not pinned and programs that are neither
/// attached nor in a program array vanish.
#[derive(Debug)]
pub struct Object {
    maps: BTreeMap<String, Map>,
    programs: BTreeMap<String, Program>,
}

impl Object {
    pub(crate) fn new(maps: BTreeMap<String, Map>, programs: BTreeMap<String, Program>) -> Self {
        Self { maps, programs }
    }

    /// The program of that name.
    pub fn program(&self, name: &str) -> Result<&Program> {
        self.programs.get(name).ok_or_else(|| Error::UnknownProgram {
            name: name.to_owned(),
            known: self.programs.keys().cloned().collect(),
        })
    }

    /// All programs, by name.
    pub fn programs(&self) -> impl Iterator<Item = &Program> {
        self.programs.values()
    }

    /// A typed handle of its own on the map of that name, once its layout has been checked.
    pub fn map<M: TypedMap>(&self, name: &str) -> Result<M> {
        M::from_map(self.untyped_map(name)?.try_clone()?)
    }

    /// The map of that name, whatever its kind.
    pub fn untyped_map(&self, name: &str) -> Result<&Map> {
        self.maps.get(name).ok_or_else(|| Error::UnknownMap {
            name: name.to_owned(),
            known: self.maps.keys().cloned().collect(),
        })
    }

    /// All maps, data sections included, by name.
    pub fn maps(&self) -> impl Iterator<Item = &Map> {
        self.maps.values()
    }
}

//! From an object's bytes to kernel objects.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya_obj::btf::Btf;

use crate::error::{Error, Result};
use crate::layout::Mismatch;
use crate::limits;
use crate::map::{self, Map, MapValue};
use crate::object::Object;
use crate::pin;
use crate::program::Program;
use crate::spec::{self, MapSpec, ObjectSpec, ProgramSpec, ReadOnly};
use crate::sys;
use crate::verifier;

/// Makes kernel objects of an eBPF object file.
///
/// Minimum kernel: 5.10; each kind of map and each way of attaching says its own.
/// Privileges: `CAP_BPF` and `CAP_NET_ADMIN`, or root.
///
/// ```no_run
/// # fn main() -> podwire_bpf::Result<()> {
/// # let bytes = &[];
/// let object = podwire_bpf::Loader::new(bytes)
///     .max_entries("FLOWS", 1 << 20)
///     .pin_maps("/sys/fs/bpf/example/maps")
///     .load()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "nothing is loaded before `load`"]
pub struct Loader<'o> {
    object: &'o [u8],
    max_entries: BTreeMap<String, u32>,
    globals: BTreeMap<String, Vec<u8>>,
    pins: Option<PathBuf>,
    unpinned: BTreeSet<String>,
    programs: Option<BTreeSet<String>>,
}

impl<'o> Loader<'o> {
    /// Takes the bytes of an object file, of any alignment.
    pub fn new(object: &'o [u8]) -> Self {
        Self {
            object,
            max_entries: BTreeMap::new(),
            globals: BTreeMap::new(),
            pins: None,
            unpinned: BTreeSet::new(),
            programs: None,
        }
    }

    /// Gives a map room for another number of entries than the object says; a ring buffer, of
    /// bytes.
    pub fn max_entries(mut self, map: &str, max_entries: u32) -> Self {
        self.max_entries.insert(map.to_owned(), max_entries);
        self
    }

    /// Sets a global variable of the programs before they are checked, so that the verifier knows
    /// its value when it is read-only.
    pub fn global<V: MapValue>(mut self, name: &str, value: &V) -> Self {
        self.globals.insert(name.to_owned(), value.as_bytes().to_vec());
        self
    }

    /// Pins every declared map under its name in `folder`, and takes those that are pinned there
    /// already, once their layouts have been found to be the same. Data sections (`.rodata` and so
    /// on) belong to this load alone and are not pinned.
    ///
    /// The folder is made if it is missing; it must be on a BPF file system. When loading fails no
    /// pin is left that was not there before.
    pub fn pin_maps(mut self, folder: impl AsRef<Path>) -> Self {
        self.pins = Some(folder.as_ref().to_owned());
        self
    }

    /// Leaves a map out of [`pin_maps`](Self::pin_maps): made anew by each load.
    pub fn unpinned(mut self, map: &str) -> Self {
        self.unpinned.insert(map.to_owned());
        self
    }

    /// Loads these programs only; otherwise all of the object's.
    pub fn programs<'n>(mut self, names: impl IntoIterator<Item = &'n str>) -> Self {
        self.programs = Some(names.into_iter().map(str::to_owned).collect());
        self
    }

    /// Makes the maps, loads the programs, pins the maps, in this order: what fails leaves nothing
    /// behind.
    ///
    /// The process's limit of locked memory is lifted first, as by
    /// [`raise_memlock`](crate::raise_memlock).
    ///
    /// The result holds every map and program; a program stays loaded while something holds it: the
    /// [`Object`], a link, a pin, a slot of a program array.
    pub fn load(&self) -> Result<Object> {
        // Kernels before 5.11 count maps against this limit; where it may not be raised the
        // memory is accounted by cgroup.
        limits::raise_memlock()?;
        let mut object = spec::parse(self.object)?;
        let globals = self.globals.iter().map(|(name, value)| (name.as_str(), (&value[..], true)));
        spec::unpanicking(|| {
            object.patch_map_data(globals.collect()).map_err(|error| Error::Global {
                name: self.globals.keys().cloned().collect::<Vec<_>>().join(", "),
                source: Box::new(error),
            })
        })?;
        let spec = self.spec(&object)?;
        let programs = self.selected(&spec)?;
        let btf = load_btf(&mut object)?;
        let maps = self.maps(&spec, btf.as_ref())?;
        spec::unpanicking(|| relocate(&mut object, &maps))?;
        let programs = programs
            .into_iter()
            .map(|program| {
                let loaded = load_program(&object, program, btf.as_ref())?;
                Ok((program.name.clone(), loaded))
            })
            .collect::<Result<BTreeMap<_, _>>>()?;
        self.pin(&maps)?;
        let maps = maps.into_iter().map(|(name, map)| (name, map.map)).collect();
        Ok(Object::new(maps, programs))
    }

    /// What the object says, with the overrides in force.
    fn spec(&self, object: &aya_obj::Object) -> Result<ObjectSpec> {
        let mut spec = ObjectSpec::of(object)?;
        for name in &self.unpinned {
            if !spec.maps.contains_key(name) {
                return Err(unknown_map(&spec, name));
            }
        }
        for (name, max_entries) in &self.max_entries {
            let Some(map) = spec.maps.remove(name) else { return Err(unknown_map(&spec, name)) };
            spec.maps.insert(name.clone(), map.max_entries(*max_entries));
        }
        Ok(spec)
    }

    fn selected<'s>(&self, spec: &'s ObjectSpec) -> Result<Vec<&'s ProgramSpec>> {
        let Some(names) = &self.programs else { return Ok(spec.programs.values().collect()) };
        let find = |name: &String| {
            spec.programs.get(name).ok_or_else(|| Error::UnknownProgram {
                name: name.clone(),
                known: spec.programs.keys().cloned().collect(),
            })
        };
        names.iter().map(find).collect()
    }

    /// Opens the maps that are pinned and makes the others, unless a pinned one differs.
    fn maps(
        &self,
        spec: &ObjectSpec,
        btf: Option<&OwnedFd>,
    ) -> Result<BTreeMap<String, LoadedMap>> {
        let mut maps = BTreeMap::new();
        let mut mismatches = Vec::new();
        if let Some(folder) = &self.pins {
            pin::create_folder(folder)?;
            for (name, wanted) in &spec.maps {
                let path = folder.join(name);
                if !self.is_pinned(wanted) {
                    continue;
                }
                let Some(map) = map::open_existing(&path, name)? else { continue };
                let differences = wanted.layout.differences(&map.layout());
                if !differences.is_empty() {
                    let map = path.display().to_string();
                    mismatches.push(Mismatch { map, differences });
                    continue;
                }
                maps.insert(name.clone(), LoadedMap { map, origin: Origin::Pin });
            }
        }
        if !mismatches.is_empty() {
            return Err(Error::IncompatibleMaps { mismatches });
        }
        for (name, wanted) in &spec.maps {
            if !maps.contains_key(name) {
                let map = create_map(wanted, btf)?;
                maps.insert(name.clone(), LoadedMap { map, origin: Origin::New(wanted.clone()) });
            }
        }
        Ok(maps)
    }

    fn is_pinned(&self, map: &MapSpec) -> bool {
        !map.is_data() && !self.unpinned.contains(&map.name)
    }

    /// Pins the maps that are new; when one cannot be, those before it are unpinned.
    fn pin(&self, maps: &BTreeMap<String, LoadedMap>) -> Result<()> {
        let Some(folder) = &self.pins else { return Ok(()) };
        let mut pinned: Vec<PathBuf> = Vec::new();
        for (name, map) in maps {
            let Origin::New(spec) = &map.origin else { continue };
            if !self.is_pinned(spec) {
                continue;
            }
            let path = folder.join(name);
            if let Err(error) = pin::create(map.map.as_fd(), &path) {
                for path in pinned {
                    // The first error is the one that explains; these pins are ours alone.
                    let _: Result<_> = pin::remove(&path);
                }
                return Err(error);
            }
            pinned.push(path);
        }
        Ok(())
    }
}

#[derive(Debug)]
struct LoadedMap {
    map: Map,
    origin: Origin,
}

#[derive(Debug)]
enum Origin {
    Pin,
    New(MapSpec),
}

fn unknown_map(spec: &ObjectSpec, name: &str) -> Error {
    Error::UnknownMap { name: name.to_owned(), known: spec.maps.keys().cloned().collect() }
}

fn create_map(spec: &MapSpec, btf: Option<&OwnedFd>) -> Result<Map> {
    let attr = match btf {
        Some(btf) => spec.create_attr_with(btf.as_fd()),
        None => spec.create_attr(),
    };
    let fd = sys::map_create(attr)
        .map_err(|source| Error::CreateMap { name: spec.name.clone(), source })?;
    let map = Map::from_fd(fd, &spec.name)?;
    if let Some(contents) = &spec.contents {
        map.fill(contents)?;
        if spec.read_only == ReadOnly::Yes {
            map.freeze()?;
        }
    }
    Ok(map)
}

/// Loads the object's type information, if it has any and the kernel takes any.
fn load_btf(object: &mut aya_obj::Object) -> Result<Option<OwnedFd>> {
    let relocations = object.has_btf_relocations();
    let Some(features) = aya::features().btf() else { return Ok(None) };
    let btf = spec::unpanicking(|| {
        let btf = object.fixup_and_sanitize_btf(features);
        let btf = btf.map_err(|error| Error::Relocate { source: Box::new(error) })?;
        Ok(btf.map(Btf::to_bytes))
    })?;
    let Some(bytes) = btf else { return Ok(None) };
    let loaded = verifier::with_log(|log| sys::btf_load(&bytes, log))
        .map_err(|(log, source)| Error::LoadBtf { log, source })?;
    if relocations {
        // Reading the kernel's own types takes a while, and few objects refer to them.
        let kernel =
            Btf::from_sys_fs().map_err(|error| Error::Relocate { source: Box::new(error) })?;
        spec::unpanicking(|| {
            let relocated = object.relocate_btf(&kernel);
            relocated.map_err(|error| Error::Relocate { source: Box::new(error) })
        })?;
    }
    Ok(Some(loaded))
}

/// Puts the maps' descriptors and the functions that programs call into the programs.
fn relocate(object: &mut aya_obj::Object, maps: &BTreeMap<String, LoadedMap>) -> Result<()> {
    let error = |error| Error::Relocate { source: Box::new(error) };
    let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    let described: HashMap<_, _> = object.maps.drain().collect();
    let descriptors = described.iter().filter_map(|(name, map)| {
        Some((name.as_str(), maps.get(name)?.map.as_fd().as_raw_fd(), map))
    });
    object.relocate_maps(descriptors, &sections).map_err(error)?;
    object.relocate_calls(&sections).map_err(error)?;
    object.sanitize_functions(aya::features());
    Ok(())
}

fn load_program(
    object: &aya_obj::Object,
    spec: &ProgramSpec,
    btf: Option<&OwnedFd>,
) -> Result<Program> {
    let missing = || Error::UnknownProgram {
        name: spec.name.clone(),
        known: object.programs.keys().cloned().collect(),
    };
    let program = object.programs.get(&spec.name).ok_or_else(missing)?;
    let function = object.functions.get(&program.function_key()).ok_or_else(missing)?;
    let Some((kind, expected_attach_type)) = spec.kind.numbers(&program.section) else {
        return Err(Error::WrongProgramType {
            program: spec.name.clone(),
            found: spec.kind.to_string(),
            needed: "a networking program",
        });
    };
    let load = sys::ProgramLoad {
        kind,
        expected_attach_type,
        name: &spec.name,
        license: &program.license,
        instructions: &function.instructions,
        kernel_version: program.kernel_version.unwrap_or(0),
        flags: 0,
        debug: btf.map(|btf| sys::DebugInfo {
            btf: btf.as_fd(),
            functions: function.func_info.func_info_bytes(),
            function_record: function.func_info_rec_size,
            lines: function.line_info.line_info_bytes(),
            line_record: function.line_info_rec_size,
        }),
    };
    let fd = verifier::with_log(|log| sys::program_load(&load, verifier::LOG_LEVEL, log)).map_err(
        |(log, source): (_, io::Error)| Error::LoadProgram {
            program: spec.name.clone(),
            log,
            source,
        },
    )?;
    Program::from_fd(fd, &spec.name)
}

//! Builds the kernel programs, and checks that the committed objects are what their sources build.
//!
//! An object is committed with a manifest beside it: which compiler and linker made it, with which
//! flags, from which sources. Debug sections are left out of the committed object; BTF and its line
//! table, which the kernel reads, stay.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// What to do with the objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Build them and write them into the tree.
    Build,
    /// Build them and compare them, byte for byte, with those in the tree.
    Check,
    /// Compare the sources' hash with that in the manifest; build nothing.
    CheckSource,
}

/// Why objects were not built or are not what they should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("{action} {path}: {source}")]
    File { action: &'static str, path: PathBuf, source: std::io::Error },
    /// A program could not be started.
    #[error("needs {program}: {source}; `cargo xtask test --install` installs it on Debian 12")]
    Start { program: String, source: std::io::Error },
    /// A program failed.
    #[error("{program} failed:\n{output}")]
    Failed { program: String, output: String },
    /// The object that the compiler made is no ELF file.
    #[error("the built object {path}: {source}")]
    Elf { path: PathBuf, source: object::build::Error },
    /// The manifest is not what this program writes.
    #[error("manifest {path}: {source}")]
    Manifest { path: PathBuf, source: serde_json::Error },
    /// Another compiler or linker is installed than the one that made the committed object.
    #[error(
        "toolchain changed: {object} was built by {built_by}, here is {here}; \
         install the former, or run `cargo xtask ebpf` and commit what it writes"
    )]
    Toolchain { object: PathBuf, built_by: String, here: String },
    /// The sources changed since the object was built.
    #[error("{object} is older than its sources: run `cargo xtask ebpf` and commit what it writes")]
    Sources { object: PathBuf },
    /// The sources build another object.
    #[error(
        "{object} is not what its sources build (committed {committed}, built {built}): \
         run `cargo xtask ebpf` and commit what it writes"
    )]
    Object { object: PathBuf, committed: String, built: String },
}

type Result<T> = std::result::Result<T, Error>;

/// An eBPF crate and the object it becomes, as paths in the workspace.
struct Unit {
    /// The crate: a workspace of its own with one binary.
    folder: &'static str,
    /// The binary's name.
    binary: &'static str,
    /// The committed object.
    object: &'static str,
    /// Other folders whose sources go into it.
    also: &'static [&'static str],
}

const UNITS: &[Unit] = &[
    Unit {
        folder: "crates/ebpf",
        binary: "podwire",
        object: "crates/datapath/objects/podwire.o",
        also: &["crates/abi"],
    },
    Unit {
        folder: "benches/kernel",
        binary: "bench",
        object: "benches/objects/bench.o",
        also: &[],
    },
    Unit {
        folder: "crates/bpf/tests/kernel",
        binary: "fixture",
        object: "crates/bpf/tests/objects/fixture.o",
        also: &[],
    },
    Unit {
        folder: "examples/mini-cni/kernel",
        binary: "count",
        object: "examples/mini-cni/objects/count.o",
        also: &[],
    },
];

const TARGET: &str = "bpfel-unknown-none";
const FLAGS: &[&str] =
    &["-Cdebuginfo=2", "-Clinker=bpf-linker", "-Clink-arg=--btf", "-Ctarget-cpu=v3"];

/// What made an object; lies beside it as JSON.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Manifest {
    compiler: String,
    linker: String,
    target: String,
    flags: Vec<String>,
    sources_sha256: String,
    object_sha256: String,
}

/// Builds or checks every object of the workspace at `root`.
pub fn run(root: &Path, mode: Mode) -> Result<()> {
    for unit in UNITS {
        let object = root.join(unit.object);
        let sources = hash_sources(root, unit)?;
        match mode {
            Mode::Build => {
                let bytes = build(root, unit)?;
                let manifest = Manifest { sources_sha256: sources, ..Manifest::here(&bytes)? };
                write(&object, &bytes)?;
                write(&manifest_path(&object), manifest.to_json().as_bytes())?;
                println!("{}: {} bytes", unit.object, bytes.len());
            }
            Mode::CheckSource => {
                if Manifest::read(&object)?.sources_sha256 != sources {
                    return Err(Error::Sources { object });
                }
                println!("{}: its sources are unchanged (not rebuilt)", unit.object);
            }
            Mode::Check => {
                let manifest = Manifest::read(&object)?;
                let bytes = read(&object)?;
                check(root, unit, &manifest, &bytes, &sources)?;
                println!("{}: is what its sources build", unit.object);
            }
        }
    }
    Ok(())
}

fn check(root: &Path, unit: &Unit, manifest: &Manifest, bytes: &[u8], sources: &str) -> Result<()> {
    let object = root.join(unit.object);
    let committed = hex(&Sha256::digest(bytes));
    let here = Manifest::here(bytes)?;
    let tools = |m: &Manifest| format!("{} and {}", m.compiler, m.linker);
    if tools(&here) != tools(manifest) {
        return Err(Error::Toolchain { object, built_by: tools(manifest), here: tools(&here) });
    }
    let built = hex(&Sha256::digest(build(root, unit)?));
    if built != committed {
        return Err(Error::Object { object, committed, built });
    }
    if *sources != manifest.sources_sha256 || committed != manifest.object_sha256 {
        return Err(Error::Sources { object });
    }
    Ok(())
}

impl Manifest {
    /// The tools at hand, and the hash of `object`; the sources are left to the caller.
    fn here(object: &[u8]) -> Result<Self> {
        Ok(Self {
            compiler: output(Command::new(compiler("rustc")).arg("--version"))?,
            linker: output(Command::new("bpf-linker").arg("--version").env("PATH", path()))?,
            target: TARGET.to_owned(),
            flags: FLAGS.iter().map(ToString::to_string).collect(),
            sources_sha256: String::new(),
            object_sha256: hex(&Sha256::digest(object)),
        })
    }

    fn read(object: &Path) -> Result<Self> {
        let path = manifest_path(object);
        serde_json::from_slice(&read(&path)?).map_err(|source| Error::Manifest { path, source })
    }

    fn to_json(&self) -> String {
        let json = serde_json::to_string_pretty(self).expect("strings always serialise");
        json + "\n"
    }
}

/// Compiles one crate and gives its object without debug sections.
///
/// The compiler is the distribution's, whose library source matches it; the environment is emptied
/// so that nothing of the toolchain that runs xtask reaches it. The paths of the checkout, of
/// cargo's folder and of the library source are mapped to fixed ones, or the object would differ
/// between folders.
fn build(root: &Path, unit: &Unit) -> Result<Vec<u8>> {
    let folder = root.join(unit.folder);
    let home = env::var_os("HOME").unwrap_or_else(|| "/root".into());
    let cargo_home =
        env::var_os("CARGO_HOME").map_or_else(|| Path::new(&home).join(".cargo"), PathBuf::from);
    let target = root.join("target/ebpf");
    let sysroot = output(Command::new(compiler("rustc")).args(["--print", "sysroot"]))?;
    let library = Path::new(&sysroot).join("lib/rustlib/src/rust");
    let library_target = fs::canonicalize(&library).unwrap_or_else(|_| library.clone());
    let mut flags: Vec<String> = FLAGS.iter().map(ToString::to_string).collect();
    for (from, to) in [
        (root, "/podwire"),
        (&cargo_home, "/cargo"),
        (&library_target, "/rust"),
        (&library, "/rust"),
    ] {
        flags.push(format!("--remap-path-prefix={}={to}", from.display()));
    }
    let mut cargo = Command::new(compiler("cargo"));
    cargo
        .args(["build", "--release", "--locked", "--quiet", "-Zbuild-std=core"])
        .args(["--target", TARGET])
        .current_dir(&folder)
        .env_clear()
        .env("HOME", &home)
        .env("CARGO_HOME", &cargo_home)
        .env("PATH", path())
        .env("RUSTC", compiler("rustc"))
        // -Zbuild-std is behind this switch in a release compiler.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_DIR", &target)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    output(&mut cargo)?;
    let built = target.join(TARGET).join("release").join(unit.binary);
    strip(&read(&built)?).map_err(|source| Error::Elf { path: built, source })
}

/// Removes the DWARF sections and what relocates them, and the crates' hashes from symbols.
///
/// Cargo hashes the path of a crate outside the workspace that is built, which `podwire-abi` is, and
/// with it whatever uses that crate: a function that is not inlined would have another name in each
/// checkout.
fn strip(object: &[u8]) -> std::result::Result<Vec<u8>, object::build::Error> {
    let mut elf = object::build::elf::Builder::read(object)?;
    for section in &mut elf.sections {
        let name = section.name.to_string();
        section.delete = name.starts_with(".debug_") || name.starts_with(".rel.debug_");
    }
    for symbol in &mut elf.symbols {
        if let Some(name) = without_crate_hash(&symbol.name) {
            symbol.name = name.into_bytes().into();
        }
    }
    elf.delete_orphans();
    // The linker keeps section names among the symbols'; the writer wants them apart.
    let names = elf.sections.add();
    names.name = ".shstrtab".into();
    names.sh_type = object::elf::SHT_STRTAB;
    names.data = object::build::elf::SectionData::SectionString;
    let mut stripped = Vec::new();
    elf.write(&mut stripped)?;
    Ok(stripped)
}

/// A mangled name as people read it, which has no hashes.
fn without_crate_hash(name: &[u8]) -> Option<String> {
    let name = str::from_utf8(name).ok()?;
    Some(format!("{:#}", rustc_demangle::try_demangle(name).ok()?))
}

/// A hash over names and contents of everything that an object is made of.
fn hash_sources(root: &Path, unit: &Unit) -> Result<String> {
    let mut files = Vec::new();
    for folder in [unit.folder].iter().chain(unit.also) {
        for part in ["Cargo.toml", "Cargo.lock", "src"] {
            collect(&root.join(folder).join(part), &mut files)?;
        }
    }
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let name = file.strip_prefix(root).unwrap_or(&file);
        let bytes = read(&file)?;
        hash.update(name.as_os_str().as_encoded_bytes());
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(&bytes);
    }
    Ok(hex(&hash.finalize()))
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if path.is_file() {
        files.push(path.to_owned());
    } else if path.is_dir() {
        let failed = |source| Error::File { action: "list", path: path.to_owned(), source };
        for entry in fs::read_dir(path).map_err(failed)? {
            collect(&entry.map_err(failed)?.path(), files)?;
        }
    }
    Ok(())
}

/// The eBPF compiler: Debian's, or where `PODWIRE_EBPF_TOOLCHAIN` says.
fn compiler(tool: &str) -> PathBuf {
    let folder = env::var_os("PODWIRE_EBPF_TOOLCHAIN").unwrap_or_else(|| "/usr/bin".into());
    Path::new(&folder).join(tool)
}

/// Where the linker is looked for: PATH, then cargo's own folder of programs.
fn path() -> std::ffi::OsString {
    let mut folders: Vec<PathBuf> =
        env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default();
    if let Some(home) = env::var_os("CARGO_HOME") {
        folders.push(Path::new(&home).join("bin"));
    } else if let Some(home) = env::var_os("HOME") {
        folders.push(Path::new(&home).join(".cargo/bin"));
    }
    env::join_paths(folders).expect("folders came from a PATH")
}

/// Runs a program; gives what it prints, without the final newline.
fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output =
        command.output().map_err(|source| Error::Start { program: program.clone(), source })?;
    if !output.status.success() {
        let output = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(Error::Failed { program, output });
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

fn manifest_path(object: &Path) -> PathBuf {
    object.with_extension("json")
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|source| Error::File { action: "read", path: path.to_owned(), source })
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = |source| Error::File { action: "write", path: path.to_owned(), source };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    fs::write(path, bytes).map_err(failed)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::without_crate_hash;

    #[test]
    fn the_crates_hash_leaves_a_mangled_name() {
        let name = |symbol: &str| without_crate_hash(symbol.as_bytes());
        let function = name("_RNvNtCs8NZ5ec0UmKm_7podwire6policy4asks");
        assert_eq!(function.as_deref(), Some("podwire::policy::asks"));
        assert_eq!(name("POLICY_RULES"), None);
    }
}

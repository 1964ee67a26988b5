//! The plugin and its configuration: on a machine, and off it again.

mod conflist;
mod error;
mod folder;
mod record;
mod runtime;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use podwire_api::DEFAULT_RUN_DIR;
use podwire_cni::{NetworkName, SpecVersion};

use conflist::{Conflist, FILE_NAME, PLUGIN};
use error::{Error, Result};
use folder::{Folder, Placed, Removed};
use record::Record;

/// The binaries that may be installed; the first must be.
const BINARIES: [&str; 2] = [PLUGIN, "podwire-ipam"];

/// The plugin that publishes ports, and that is called where it is there.
const PORTMAP: &str = "portmap";

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Folder of plugins.
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    bin_dir: PathBuf,
    /// Folder of network configurations.
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    conf_dir: PathBuf,
    /// Folder to take podwire-cni from, and podwire-ipam if it is there; that of podwired if not
    /// given.
    #[arg(long, value_name = "DIR")]
    source: Option<PathBuf>,
    /// Version of the configuration: the newest that the runtime on PATH handles right, or this one.
    #[arg(long, value_name = "VERSION", value_enum, default_value_t = Version::Auto)]
    cni_version: Version,
    /// Name of the network.
    #[arg(long, value_name = "NAME", default_value = "podwire")]
    network: NetworkName,
    /// Folder of the agent's socket.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_RUN_DIR)]
    run_dir: PathBuf,
    /// Plugin to call after podwire-cni; portmap if not given, where there is one. Repeatable.
    #[arg(long, value_name = "PLUGIN")]
    chain: Vec<String>,
    /// Call no other plugin.
    #[arg(long, conflicts_with = "chain")]
    no_chain: bool,
    /// Another folder in which the runtime looks for plugins. Repeatable.
    #[arg(long = "plugin-dir", value_name = "DIR")]
    plugin_dirs: Vec<PathBuf>,
    /// Remove what was installed: the configuration first, then the binaries.
    #[arg(long)]
    remove: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Version {
    Auto,
    #[value(name = "1.0.0")]
    V1_0_0,
    #[value(name = "1.1.0")]
    V1_1_0,
}

/// Does what was asked and tells on standard output what became of each file.
pub(crate) fn main(options: &Options) -> ExitCode {
    let mut report = Report::default();
    let done =
        if options.remove { remove(options, &mut report) } else { install(options, &mut report) };
    // What was done is done, whether or not anybody listens.
    let _ = std::io::stdout().write_all(report.text.as_bytes());
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What there is to tell, a line for each thing.
#[derive(Debug, Default)]
struct Report {
    text: String,
}

impl Report {
    fn line(&mut self, what: &str, about: impl std::fmt::Display) {
        self.text.push_str(&format!("{what:<9} {about}\n"));
    }

    fn placed(&mut self, placed: Placed, path: &Path) {
        let what = match placed {
            Placed::Created => "created",
            Placed::Changed => "changed",
            Placed::Unchanged => "unchanged",
        };
        self.line(what, path.display());
    }

    fn removed(&mut self, removed: Removed, path: &Path) {
        let what = match removed {
            Removed::Removed => "removed",
            Removed::Absent => "absent",
        };
        self.line(what, path.display());
    }
}

fn install(options: &Options, report: &mut Report) -> Result<()> {
    let source = match &options.source {
        Some(folder) => folder.clone(),
        None => own_folder()?,
    };
    let binaries = binaries(&source)?;
    let (version, why) = match options.cni_version {
        Version::Auto => runtime::choose(&runtime::present()),
        Version::V1_0_0 => (SpecVersion::V1_0_0, "as asked for".to_owned()),
        Version::V1_1_0 => (SpecVersion::V1_1_0, "as asked for".to_owned()),
    };
    let chain = chain(options, report)?;
    let conflist = Conflist {
        version,
        network: &options.network,
        run_dir: absolute(&options.run_dir)?,
        chain: &chain,
    };

    let conf = Folder::create(&options.conf_dir)?;
    if let Some(found) = conf.read(FILE_NAME)?
        && !conflist::is_ours(&found)
    {
        return Err(Error::Foreign { path: conf.path_of(FILE_NAME) });
    }
    if conf.is_at(&options.bin_dir)? {
        return Err(Error::OneFolder { path: options.bin_dir.clone() });
    }
    let bin = Folder::create(&options.bin_dir)?;

    // Whenever this is interrupted, the record has the hash of the binary that is there.
    let mut recorded = Record::read(&bin)?;
    for (name, content) in &binaries {
        recorded.add(name, content);
    }
    recorded.write(&bin)?;
    for (name, content) in &binaries {
        report.placed(bin.put(name, content, 0o755)?, &bin.path_of(name));
        recorded.keep_only(name, content);
    }
    recorded.write(&bin)?;
    let placed = conf.put(FILE_NAME, conflist.to_text().as_bytes(), 0o644)?;
    report.placed(placed, &conf.path_of(FILE_NAME));
    report.line("version", format_args!("{version}: {why}"));
    warn_of_others(options, &conf, report)
}

/// Removes what [`install`] has put there, and nothing else: the configuration if it calls podwire,
/// a binary if it is what was recorded or what the source has.
fn remove(options: &Options, report: &mut Report) -> Result<()> {
    let path = options.conf_dir.join(FILE_NAME);
    // Held to the end, so that no other install comes between.
    let conf = Folder::open(&options.conf_dir)?;
    if let Some(conf) = &conf
        && conf.is_at(&options.bin_dir)?
    {
        return Err(Error::OneFolder { path: options.bin_dir.clone() });
    }
    match conf.as_ref().map(|folder| folder.read(FILE_NAME)).transpose()?.flatten() {
        Some(found) if !conflist::is_ours(&found) => {
            report.line("left", format_args!("{}: it is not podwire's", path.display()));
        }
        _ => {
            let removed = conf.as_ref().map(|folder| folder.remove(FILE_NAME)).transpose()?;
            report.removed(removed.unwrap_or(Removed::Absent), &path);
        }
    }
    let Some(bin) = Folder::open(&options.bin_dir)? else {
        report.removed(Removed::Absent, &options.bin_dir.join(PLUGIN));
        return Ok(());
    };
    let mut recorded = Record::read(&bin)?;
    let source = options.source.clone().or_else(|| own_folder().ok());
    for name in BINARIES {
        if let Some(content) = source.as_ref().and_then(|folder| fs::read(folder.join(name)).ok()) {
            recorded.add(name, &content);
        }
        match bin.read(name)? {
            Some(found) if !recorded.has(name, &found) => {
                let path = bin.path_of(name);
                report.line("left", format_args!("{}: it was not installed so", path.display()));
            }
            found => {
                let removed = bin.remove(name)?;
                if found.is_some() || name == PLUGIN {
                    report.removed(removed, &bin.path_of(name));
                }
            }
        }
    }
    Record::remove(&bin)
}

/// The folder of the running binary.
fn own_folder() -> Result<PathBuf> {
    let own = std::env::current_exe().map_err(|source| Error::OwnFolder { source })?;
    Ok(own.parent().map(Path::to_owned).unwrap_or_default())
}

/// The binaries of a folder.
fn binaries(source: &Path) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let mut binaries = Vec::new();
    for name in BINARIES {
        let path = source.join(name);
        match fs::read(&path) {
            Ok(content) if content.starts_with(b"\x7fELF") => binaries.push((name, content)),
            Ok(_) => return Err(Error::NotABinary { path }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && name != PLUGIN => {}
            Err(source) => return Err(Error::File { action: "read", path, source }),
        }
    }
    Ok(binaries)
}

/// The plugins after podwire's, each of which must be there: without it no pod could be added.
fn chain(options: &Options, report: &mut Report) -> Result<Vec<String>> {
    let folders = || [&options.bin_dir].into_iter().chain(&options.plugin_dirs);
    let is_there = |name: &str| folders().any(|folder| folder.join(name).is_file());
    let looked = || folders().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", ");
    if options.no_chain {
        return Ok(Vec::new());
    }
    if options.chain.is_empty() {
        if is_there(PORTMAP) {
            return Ok(vec![PORTMAP.to_owned()]);
        }
        report.line("note", format_args!("no {PORTMAP} in {}: no ports are published", looked()));
        return Ok(Vec::new());
    }
    for name in &options.chain {
        if name.is_empty() || name.contains('/') || BINARIES.contains(&name.as_str()) {
            return Err(Error::ChainName { name: name.clone() });
        }
        if !is_there(name) {
            return Err(Error::NoPlugin { name: name.clone(), looked: looked() });
        }
    }
    Ok(options.chain.clone())
}

/// A runtime takes the first configuration in the order of names, or all of them.
fn warn_of_others(options: &Options, conf: &Folder, report: &mut Report) -> Result<()> {
    for name in conf.names()?.into_iter().filter(|name| conflist::is_configuration(name)) {
        let path = conf.path_of(&name);
        if name == FILE_NAME {
            continue;
        }
        // It may be gone, or no file; then it is in nobody's way.
        let Ok(content) = fs::read(&path) else { continue };
        if name.as_str() < FILE_NAME {
            let text = "comes first, and is what the runtime takes";
            report.line("warning", format_args!("{} {text}", path.display()));
        } else if conflist::names(&content, options.network.as_str()) {
            let text = format!("is of a network {} as well: remove it", options.network);
            report.line("warning", format_args!("{} {text}", path.display()));
        }
    }
    Ok(())
}

fn absolute(path: &Path) -> Result<&str> {
    match path.to_str() {
        Some(text) if path.is_absolute() => Ok(text),
        _ => Err(Error::RunDir { path: path.to_owned() }),
    }
}

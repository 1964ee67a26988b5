use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::Network;
use crate::{Code, Error, NetworkConfig};

/// A file, and what could be read from it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Found<T> {
    /// The file.
    pub file: PathBuf,
    /// What it holds, or what is wrong with it.
    pub content: Result<T, Error>,
}

/// Reads every network of a folder, in the order of the files' names, as runtimes do: the first
/// one is a kubelet's. Looked at are `.conflist`, `.conf` and `.json`.
///
/// A folder that is not there holds none.
///
/// # Errors
///
/// Code 5 if the folder cannot be read. What is wrong with a file is told with it, and keeps no
/// other from being found.
pub fn networks(folder: &Path) -> Result<Vec<Found<Network>>, Error> {
    let files = files(folder, &["conflist", "conf", "json"])?;
    let found = files.into_iter().map(|file| {
        let content = Network::from_file(&file);
        Found { file, content }
    });
    Ok(found.collect())
}

/// Finds a network by its name, in the first file that has it.
///
/// # Errors
///
/// Code 7 if no file has it; the details name the networks there are, and the files that cannot
/// be read. Code 5 if the folder cannot be read.
pub fn network(folder: &Path, name: &str) -> Result<Network, Error> {
    let (mut others, mut unreadable) = (Vec::new(), Vec::new());
    for found in networks(folder)? {
        match found.content {
            Ok(network) if network.name().as_str() == name => return Ok(network),
            Ok(network) => others.push(network.name().to_string()),
            Err(error) => unreadable.push(error.to_string()),
        }
    }
    let msg = format!("there is no network {name:?} in {}", folder.display());
    let mut error = Error::new(Code::INVALID_NETWORK_CONFIG, msg);
    if !others.is_empty() {
        error = error.with_more(&format!("there are {}", others.join(", ")));
    }
    for one in &unreadable {
        error = error.with_more(one);
    }
    Err(error)
}

/// The files of a folder with one of these extensions, by name.
pub(super) fn files(folder: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>, Error> {
    let failed = |error: &io::Error| {
        Error::new(Code::IO_FAILURE, format!("cannot read the folder {}", folder.display()))
            .with_source(error)
    };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(&error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let file = entry.map_err(|error| failed(&error))?.path();
        let extension = file.extension().and_then(|extension| extension.to_str());
        if extension.is_some_and(|found| extensions.contains(&found)) && !file.is_dir() {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

/// Reads a file of a configuration, which is never larger than what a plugin takes.
pub(super) fn read(file: &Path) -> Result<Vec<u8>, Error> {
    read_up_to(file, NetworkConfig::MAX_LEN).map_err(|error| {
        Error::new(Code::IO_FAILURE, format!("{}: cannot be read", file.display()))
            .with_source(&error)
    })
}

/// Reads a file, and one byte more than `most` of one that is larger.
pub(super) fn read_up_to(file: &Path, most: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(file)?.take(most as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

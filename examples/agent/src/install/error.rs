use std::io;
use std::path::PathBuf;

pub(super) type Result<T> = std::result::Result<T, Error>;

/// Why the plugin was not installed or removed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("{action} {}: {source}", path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error("find podwired's own folder: {source}; give a --source")]
    OwnFolder { source: io::Error },
    #[error("{} is no program for Linux", path.display())]
    NotABinary { path: PathBuf },
    #[error("{} is there and no file", path.display())]
    NotAFile { path: PathBuf },
    #[error("{} is somebody else's: its first plugin is not podwire-cni; nothing was changed", path.display())]
    Foreign { path: PathBuf },
    #[error("{} cannot be the folder of plugins and of configurations", path.display())]
    OneFolder { path: PathBuf },
    #[error("--run-dir: {} is not an absolute path in UTF-8", path.display())]
    RunDir { path: PathBuf },
    #[error("--chain: {name:?} is no name of another plugin")]
    ChainName { name: String },
    #[error("--chain: there is no {name} in {looked}; without it no pod could be added")]
    NoPlugin { name: String, looked: String },
}

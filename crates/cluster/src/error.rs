use std::io;
use std::path::PathBuf;

/// Why a source cannot be had at all. What goes wrong later is a [`Problem`](crate::Problem) of the
/// snapshot.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel does not watch for us: too many instances of inotify, most likely.
    #[error("watch {}", path.display())]
    Watch {
        /// The folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// No thread was to be had.
    #[error("start the thread that watches {}", path.display())]
    Thread {
        /// The folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::libc::{O_DIRECTORY, O_NOFOLLOW};

use crate::Error;

/// Makes sure that `path` is a folder of our own that nobody else can enter: created with mode
/// 0700, or tightened to it. A symlink, a file or somebody else's folder is refused.
pub(crate) fn private(path: &Path) -> Result<(), Error> {
    let failed =
        |operation| move |source| Error::Folder { operation, path: path.to_owned(), source };
    let refused = |why: &str| Error::FolderRefused { path: path.to_owned(), why: why.into() };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed("create the parents of"))?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed("create")(error)),
    }
    // Looked at and tightened through one descriptor, so that nothing can be put in its place
    // between the two.
    let folder = match open_folder(path) {
        Ok(folder) => folder,
        Err(error) if error.raw_os_error() == Some(nix::libc::ELOOP) => {
            return Err(refused("it is a symbolic link"));
        }
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            // With O_DIRECTORY, a symbolic link is reported as no folder as well.
            let link = fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink());
            return Err(refused(if link { "it is a symbolic link" } else { "it is no folder" }));
        }
        Err(error) => return Err(failed("open")(error)),
    };
    let found = folder.metadata().map_err(failed("look at"))?;
    let own = nix::unistd::geteuid().as_raw();
    if found.uid() != own {
        return Err(refused(&format!("it belongs to uid {}, not to {own}", found.uid())));
    }
    if found.mode() & 0o7777 != 0o700 {
        folder.set_permissions(Permissions::from_mode(0o700)).map_err(failed("tighten"))?;
    }
    Ok(())
}

/// Makes room for the socket: a stale one is removed, one that answers belongs to another agent.
pub(crate) fn clear_socket(socket: &Path) -> Result<(), Error> {
    match UnixStream::connect(socket) {
        Ok(_) => return Err(Error::AlreadyRunning { socket: socket.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(_) => {}
    }
    match fs::remove_file(socket) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::Folder { operation: "remove the stale", path: socket.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Makes what was created or removed in a folder durable.
pub(crate) fn sync(path: &Path) -> io::Result<()> {
    open_folder(path)?.sync_all()
}

fn open_folder(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(O_DIRECTORY | O_NOFOLLOW).open(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn created_and_tightened() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("run/podwire");
        private(&path).unwrap();
        assert_eq!(mode(&path), 0o700);
        fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
        private(&path).unwrap();
        assert_eq!(mode(&path), 0o700);
    }

    #[test]
    fn symlinks_and_files_are_refused() {
        let base = tempfile::tempdir().unwrap();
        let (target, link) = (base.path().join("target"), base.path().join("link"));
        fs::create_dir(&target).unwrap();
        symlink(&target, &link).unwrap();
        let error = private(&link).unwrap_err();
        assert!(error.to_string().contains("symbolic link"), "{error}");
        let file = base.path().join("file");
        fs::write(&file, "").unwrap();
        let error = private(&file).unwrap_err();
        assert!(error.to_string().contains("no folder"), "{error}");
    }

    #[test]
    #[ignore = "needs root: gives a folder away"]
    fn a_foreign_folder_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("run");
        fs::create_dir(&path).unwrap();
        std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
        let error = private(&path).unwrap_err();
        assert!(error.to_string().contains("belongs to uid 65534"), "{error}");
    }

    #[test]
    fn only_stale_sockets_are_removed() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("podwire.sock");
        clear_socket(&path).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        assert!(clear_socket(&path).unwrap_err().is_already_running());
        drop(listener);
        assert!(path.exists());
        clear_socket(&path).unwrap();
        assert!(!path.exists());
    }
}

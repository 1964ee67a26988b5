//! Files of a BPF file system that keep objects alive.

use std::ffi::CString;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::sys::statfs::{FsType, statfs};

use crate::error::{Error, PinOperation, Result};
use crate::map::Removal;
use crate::sys;

/// `BPF_FS_MAGIC`
const BPFFS: FsType = FsType(0xcafe_4a11);

pub(crate) fn open(path: &Path) -> Result<OwnedFd> {
    c_path(path).and_then(|path| sys::open_pin(&path)).map_err(error(PinOperation::Open, path))
}

pub(crate) fn create(object: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    c_path(path).and_then(|path| sys::pin(object, &path)).map_err(|source| {
        // The kernel says EPERM for a folder elsewhere, which explains nothing.
        match check_folder(folder) {
            Err(not_bpffs @ Error::NotBpffs { .. }) => not_bpffs,
            _ => error(PinOperation::Create, path)(source),
        }
    })
}

/// Removes a pin; the object lives on if something else refers to it.
pub(crate) fn remove(path: &Path) -> Result<Removal> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(Removal::Removed),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(Removal::Absent),
        Err(source) => Err(error(PinOperation::Remove, path)(source)),
    }
}

/// Makes a folder for pins, with those above it, and checks that pins can be in it.
pub(crate) fn create_folder(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(error(PinOperation::CreateFolder, path))?;
    check_folder(path)
}

fn check_folder(path: &Path) -> Result<()> {
    let found = statfs(path).map_err(|errno| error(PinOperation::List, path)(errno.into()))?;
    if found.filesystem_type() == BPFFS {
        Ok(())
    } else {
        Err(Error::NotBpffs { path: path.to_owned() })
    }
}

pub(crate) fn error(operation: PinOperation, path: &Path) -> impl FnOnce(io::Error) -> Error + '_ {
    move |source| Error::Pin { operation, path: path.to_owned(), source }
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

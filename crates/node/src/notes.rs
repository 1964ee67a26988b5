use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use podwire_api::EndpointId;

use crate::{Error, folder};

/// A note that a DEL has left when it met no agent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) path: PathBuf,
    pub(crate) id: EndpointId,
}

/// The notes that wait, and the files beside them that are none.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Notes {
    pub(crate) notes: Vec<Note>,
    pub(crate) strangers: Vec<PathBuf>,
}

/// Reads the notes. A file that is no note is left alone and told, but one whose name starts with
/// a dot is a plugin's unfinished writing, which is removed if its writer was killed.
pub(crate) fn read(folder: &Path) -> Result<Notes, Error> {
    let mut found = Notes::default();
    let failed = |operation, path: &Path| {
        let path = path.to_owned();
        move |source| Error::Folder { operation, path, source }
    };
    for entry in fs::read_dir(folder).map_err(failed("list", folder))? {
        let path = entry.map_err(failed("list", folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with('.') {
            if name.starts_with(".pw") && is_abandoned(&path).map_err(failed("look at", &path))? {
                remove_file(&path)?;
            }
            continue;
        }
        match parse(&path).map_err(failed("read", &path))? {
            Some(id) if id.host_link() == name => found.notes.push(Note { path, id }),
            _ => found.strangers.push(path),
        }
    }
    found.notes.sort_by(|a, b| a.id.cmp(&b.id));
    found.strangers.sort();
    Ok(found)
}

/// Removes notes that have been honoured.
pub(crate) fn remove(folder: &Path, notes: &[Note]) -> Result<(), Error> {
    for note in notes {
        remove_file(&note.path)?;
    }
    folder::sync(folder).map_err(|source| Error::Folder {
        operation: "sync",
        path: folder.to_owned(),
        source,
    })
}

fn remove_file(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::Folder { operation: "remove", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Whether nobody has an unfinished note locked: its writer does so as long as it lives. One that is
/// just about to is told by its rename that the file is gone, and its runtime repeats the DEL.
fn is_abandoned(path: &Path) -> io::Result<bool> {
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = match fs::OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.raw_os_error() == Some(nix::libc::ELOOP) => return Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    if !file.metadata()?.is_file() {
        return Ok(false);
    }
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(fs::TryLockError::WouldBlock) => Ok(false),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}

fn parse(path: &Path) -> io::Result<Option<EndpointId>> {
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = match fs::OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.raw_os_error() == Some(nix::libc::ELOOP) => return Ok(None),
        Err(error) => return Err(error),
    };
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    let mut text = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, 4096), &mut text)?;
    Ok(serde_json::from_slice(&text).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_told_from_other_files() {
        let folder = tempfile::tempdir().unwrap();
        let id = EndpointId::new("c1", "eth0").unwrap();
        let path = folder.path().join(id.host_link());
        fs::write(&path, r#"{"container_id":"c1","ifname":"eth0"}"#).unwrap();
        fs::write(folder.path().join(".tmp"), "of somebody else").unwrap();
        let half = |name| fs::File::create(folder.path().join(name)).unwrap();
        let under_way = half(".pwaaaaaaaaaaaaa.7");
        under_way.lock().unwrap();
        drop(half(".pwaaaaaaaaaaaaa.8"));
        fs::write(
            folder.path().join("pwaaaaaaaaaaaaa"),
            r#"{"container_id":"c1","ifname":"eth0"}"#,
        )
        .unwrap();
        fs::write(folder.path().join("README"), "hello").unwrap();
        fs::create_dir(folder.path().join("sub")).unwrap();
        std::os::unix::fs::symlink(&path, folder.path().join("link")).unwrap();

        let found = read(folder.path()).unwrap();
        assert_eq!(found.notes, [Note { path: path.clone(), id }]);
        let strangers: Vec<_> =
            found.strangers.iter().filter_map(|path| path.file_name()?.to_str()).collect();
        assert_eq!(strangers, ["README", "link", "pwaaaaaaaaaaaaa", "sub"]);

        let is_there = |name| folder.path().join(name).exists();
        assert!(is_there(".tmp") && is_there(".pwaaaaaaaaaaaaa.7"));
        assert!(!is_there(".pwaaaaaaaaaaaaa.8"));
        remove(folder.path(), &found.notes).unwrap();
        assert!(!path.exists());
        remove(folder.path(), &found.notes).unwrap();
    }
}

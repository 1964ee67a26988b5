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
/// a dot is the plugin's unfinished writing.
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
        match fs::remove_file(&note.path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                let path = note.path.clone();
                return Err(Error::Folder { operation: "remove", path, source });
            }
            _ => {}
        }
    }
    folder::sync(folder).map_err(|source| Error::Folder {
        operation: "sync",
        path: folder.to_owned(),
        source,
    })
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
        fs::write(folder.path().join(".tmp"), "half").unwrap();
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

        remove(folder.path(), &found.notes).unwrap();
        assert!(!path.exists());
        remove(folder.path(), &found.notes).unwrap();
    }
}

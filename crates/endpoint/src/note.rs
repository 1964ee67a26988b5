//! Notes for an agent that is away.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use podwire_api::EndpointId;

use crate::error::{Error, Result};

/// Leaves a durable note that the endpoint is gone: written aside, synced, renamed, and the folder
/// synced, so that it is there whole or not at all.
pub(crate) fn leave(folder: &Path, id: &EndpointId) -> Result<PathBuf> {
    let path = folder.join(id.host_link());
    write(folder, &path, id).map_err(|source| Error::Note { path: path.clone(), source })?;
    Ok(path)
}

/// Takes a note back, whose work was done after all.
pub(crate) fn take_back(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::Note { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

fn write(folder: &Path, path: &Path, id: &EndpointId) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    // The process id keeps two DELs of one endpoint apart; a leading dot keeps agents from it.
    let aside = folder.join(format!(".{}.{}", id.host_link(), std::process::id()));
    let written = write_aside(&aside, id).and_then(|locked| {
        fs::rename(&aside, path)?;
        drop(locked);
        File::open(folder)?.sync_all()
    });
    written.inspect_err(|_| {
        // The first error tells what is wrong; what stays is found by the next agent.
        let _ = fs::remove_file(&aside);
    })
}

/// Writes a note under the name it has until it is whole. Meanwhile it is locked: one that nobody
/// has locked was left by a writer that was killed, and agents remove it.
fn write_aside(aside: &Path, id: &EndpointId) -> io::Result<File> {
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(aside)?;
    file.lock()?;
    file.write_all(&serde_json::to_vec(id)?)?;
    file.sync_all()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_the_endpoint_and_can_be_taken_back() {
        let folder = own_folder();
        let id = EndpointId::new("c1", "eth0").unwrap();
        let path = leave(&folder, &id).unwrap();
        assert_eq!(leave(&folder, &id).unwrap(), path, "a second DEL leaves the same note");
        let read: EndpointId = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(read, id);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        take_back(&path).unwrap();
        take_back(&path).unwrap();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        fs::remove_dir(&folder).unwrap();
    }

    fn own_folder() -> PathBuf {
        std::env::temp_dir().join(format!("podwire-notes-{}", std::process::id()))
    }
}

//! Which binaries were installed.
//!
//! A binary bears no mark of its own, and its name alone is no proof: so their hashes lie beside
//! them, in the form that `sha256sum --check` takes.

use std::collections::BTreeSet;

use sha2::{Digest as _, Sha256};

use super::error::Result;
use super::folder::Folder;

const FILE_NAME: &str = ".podwire-installed";

/// Names and hashes. A name has several while its binary is being replaced.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Record(BTreeSet<(String, String)>);

impl Record {
    /// An empty record if there is none. Lines that are none of ours are passed over.
    pub(super) fn read(folder: &Folder) -> Result<Self> {
        let content = folder.read(FILE_NAME)?.unwrap_or_default();
        Ok(Self::parse(&String::from_utf8_lossy(&content)))
    }

    pub(super) fn write(&self, folder: &Folder) -> Result<()> {
        folder.put(FILE_NAME, self.to_text().as_bytes(), 0o644).map(drop)
    }

    pub(super) fn remove(folder: &Folder) -> Result<()> {
        folder.remove(FILE_NAME).map(drop)
    }

    pub(super) fn add(&mut self, name: &str, content: &[u8]) {
        self.0.insert((name.to_owned(), hash(content)));
    }

    /// Forgets all contents of this name but one.
    pub(super) fn keep_only(&mut self, name: &str, content: &[u8]) {
        let kept = hash(content);
        self.0.retain(|(other, hash)| other != name || *hash == kept);
    }

    pub(super) fn has(&self, name: &str, content: &[u8]) -> bool {
        self.0.contains(&(name.to_owned(), hash(content)))
    }

    fn parse(text: &str) -> Self {
        let entry = |line: &str| {
            let (hash, name) = line.split_once("  ")?;
            Some((name.to_owned(), hash.to_owned()))
        };
        Self(text.lines().filter_map(entry).collect())
    }

    fn to_text(&self) -> String {
        self.0.iter().map(|(name, hash)| format!("{hash}  {name}\n")).collect()
    }
}

fn hash(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_has_old_and_new_until_one_is_kept() {
        let mut record = Record::default();
        record.add("podwire-cni", b"old");
        record.add("podwire-cni", b"new");
        record.add("podwire-ipam", b"old");
        assert_eq!(Record::parse(&record.to_text()), record);
        assert!(record.has("podwire-cni", b"old") && record.has("podwire-cni", b"new"));
        assert!(!record.has("podwire-ipam", b"new"));
        record.keep_only("podwire-cni", b"new");
        assert!(!record.has("podwire-cni", b"old") && record.has("podwire-cni", b"new"));
        assert!(record.has("podwire-ipam", b"old"));
        assert_eq!(Record::parse("nonsense\n"), Record::default());
    }

    #[test]
    fn a_line_is_as_sha256sum_writes_it() {
        let mut record = Record::default();
        record.add("x", b"");
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(record.to_text(), format!("{empty}  x\n"));
    }
}

//! A disk in memory whose power fails: what was not synced is there, is not there, or is there in
//! parts, each sector of 512 bytes as some moment since the last sync left it.

#![expect(clippy::unwrap_used, reason = "functions that tests share panic as tests do")]

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

use crate::random::Rng;

const SECTOR: usize = 512;

/// The disk. Clones are the same disk.
#[derive(Clone, Debug)]
pub(crate) struct Disk(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// What the programs see.
    content: Vec<u8>,
    /// What is there whatever happens.
    synced: Vec<u8>,
    /// What each sector was since the last sync, oldest first.
    history: BTreeMap<usize, Vec<Vec<u8>>>,
    /// The lengths since the last sync.
    lengths: Vec<usize>,
    /// Writes until the power fails.
    left: Option<usize>,
    syncs: u64,
    rng: Rng,
}

impl Disk {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            content: Vec::new(),
            synced: Vec::new(),
            history: BTreeMap::new(),
            lengths: Vec::new(),
            left: None,
            syncs: 0,
            rng: Rng::new(seed),
        })))
    }

    /// The disk as a program opens it.
    pub(crate) fn open(&self) -> io::Result<Handle> {
        self.state().powered()?;
        Ok(Handle(self.clone()))
    }

    /// The power fails in the middle of the write or sync after so many.
    pub(crate) fn fail_after(&self, writes: usize) {
        self.state().left = Some(writes);
    }

    /// The power fails now if it has not, and comes back.
    pub(crate) fn crash(&self) {
        let mut state = self.state();
        let State { content, synced, history, lengths, left, rng, .. } = &mut *state;
        lengths.push(synced.len());
        let length = lengths[rng.below(lengths.len())];
        synced.resize(length, 0);
        for (sector, versions) in history.iter() {
            // The version of the last sync, or one of those since.
            let Some(version) = rng.below(versions.len() + 1).checked_sub(1) else { continue };
            let start = sector * SECTOR;
            if start < length {
                let end = length.min(start + versions[version].len());
                synced[start..end].copy_from_slice(&versions[version][..end - start]);
            }
        }
        content.clone_from(synced);
        history.clear();
        lengths.clear();
        *left = None;
    }

    /// How often it was synced.
    pub(crate) fn syncs(&self) -> u64 {
        self.state().syncs
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn powered(&self) -> io::Result<()> {
        if self.left == Some(0) { Err(io::Error::other("the power is off")) } else { Ok(()) }
    }

    /// Takes one of the writes that are left.
    fn spend(&mut self) -> io::Result<()> {
        self.powered()?;
        if let Some(left) = &mut self.left {
            *left -= 1;
        }
        Ok(())
    }

    fn remember(&mut self, from: usize, to: usize) {
        for sector in from / SECTOR..to.div_ceil(SECTOR) {
            let end = self.content.len().min((sector + 1) * SECTOR);
            let version = self.content[sector * SECTOR..end].to_vec();
            self.history.entry(sector).or_default().push(version);
        }
    }
}

/// An open disk. It is of no use any more after a crash that came between.
#[derive(Debug)]
pub(crate) struct Handle(Disk);

impl StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        let state = self.0.state();
        state.powered()?;
        Ok(state.content.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.0.state();
        state.powered()?;
        let start = usize::try_from(offset).unwrap();
        let found = state.content.get(start..start + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.0.state();
        state.spend()?;
        let (old, new) = (state.content.len(), usize::try_from(len).unwrap());
        state.content.resize(new, 0);
        state.lengths.push(new);
        state.remember(old.min(new), new);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.0.state();
        state.spend()?;
        // The power may fail in the middle of it: then nothing is certain.
        state.powered()?;
        let State { content, synced, history, lengths, syncs, .. } = &mut *state;
        if lengths.is_empty() {
            for (sector, versions) in history.iter() {
                let last = versions.last().unwrap();
                synced[sector * SECTOR..][..last.len()].copy_from_slice(last);
            }
        } else {
            synced.clone_from(content);
        }
        history.clear();
        lengths.clear();
        *syncs += 1;
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.0.state();
        state.spend()?;
        let start = usize::try_from(offset).unwrap();
        state.content[start..start + data.len()].copy_from_slice(data);
        state.remember(start, start + data.len());
        Ok(())
    }
}

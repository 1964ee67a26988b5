use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{io, mem};

use super::error::Panicked;
use super::{Change, Entry, Error, Store};

/// A thread that commits to a store what callers begin. Whatever has gathered during one commit
/// is the next: callers that come together share one sync.
///
/// What was begun first is committed first, or together with what came after it. So a store never
/// holds a change without all that were begun before it.
///
/// After a commit has failed, everything that was begun behind it fails as well, without being
/// tried, until [`recover`](Self::recover) has looked at what the store holds.
///
/// Dropping the journal commits what was begun.
#[derive(Debug)]
pub struct Journal<S> {
    shared: Arc<Shared<S>>,
    thread: Option<JoinHandle<()>>,
}

/// How much has been committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Requests whose changes are in the store.
    pub requests: u64,
    /// The changes of these requests.
    pub changes: u64,
    /// Commits that it took, each of them one sync.
    pub commits: u64,
    /// Commits that failed.
    pub failures: u64,
}

impl<S: Store> Journal<S> {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// The system has no thread to give.
    pub fn start(store: S) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            store: Mutex::new(store),
            queue: Mutex::default(),
            begun: Condvar::new(),
        });
        let serving = shared.clone();
        // Trees of pages need little; the default of 2 MiB counts in some accounting.
        let thread = thread::Builder::new().name("podwire-journal".into()).stack_size(512 << 10);
        let thread = thread.spawn(move || serving.serve())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Has these changes committed, as one with all that is begun meanwhile.
    ///
    /// Without changes, the ticket is for what was begun before.
    pub fn begin(&self, changes: Vec<Change>) -> Ticket {
        let mut queue = self.shared.queue();
        if let Some(error) = &queue.failed {
            return Ticket(Stage::Failed(error.clone()));
        }
        if changes.is_empty() {
            let last = if queue.next.is_empty() {
                queue.running.clone()
            } else {
                Some(queue.next.batch.clone())
            };
            return Ticket(last.map_or(Stage::Committed, Stage::Begun));
        }
        queue.next.requests += 1;
        queue.next.changes.extend(changes);
        let ticket = Ticket(Stage::Begun(queue.next.batch.clone()));
        if queue.running.is_none() {
            self.shared.begun.notify_one();
        }
        ticket
    }

    /// Commits these changes.
    ///
    /// # Errors
    ///
    /// As [`Ticket::wait`].
    pub fn commit(&self, changes: Vec<Change>) -> Result<(), Error> {
        self.begin(changes).wait()
    }

    /// The entries of a table, those of a commit under way included.
    ///
    /// # Errors
    ///
    /// The store cannot be read.
    pub fn load(&self, table: &str) -> Result<Vec<Entry>, Error> {
        self.shared.store().load(table).map_err(Error::store("read the store"))
    }

    /// Why nothing is committed any more, if that is so.
    #[must_use]
    pub fn failure(&self) -> Option<Error> {
        self.shared.queue().failed.clone()
    }

    /// Calls `look` with the store, and goes on if it succeeds.
    ///
    /// The caller learns there what has become of the changes that failed.
    ///
    /// # Errors
    ///
    /// What `look` fails with; the journal refuses everything then, as before.
    pub fn recover<T>(&self, look: impl FnOnce(&mut S) -> Result<T, Error>) -> Result<T, Error> {
        let seen = look(&mut self.shared.store())?;
        self.shared.queue().failed = None;
        Ok(seen)
    }

    /// How much has been committed.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.shared.queue().counts
    }
}

impl<S> Drop for Journal<S> {
    fn drop(&mut self) {
        self.shared.queue().closing = true;
        self.shared.begun.notify_one();
        if let Some(thread) = self.thread.take() {
            // It catches the store's panics, and has none of its own.
            let _ = thread.join();
        }
    }
}

/// Changes on their way to the disk.
#[derive(Clone, Debug)]
#[must_use = "nothing is certain before it was waited for"]
pub struct Ticket(Stage);

#[derive(Clone, Debug)]
enum Stage {
    Begun(Arc<Batch>),
    Committed,
    Failed(Error),
}

impl Ticket {
    /// Waits until the changes are on the disk.
    ///
    /// # Errors
    ///
    /// They are not, or it is not known: [`Error::Store`].
    pub fn wait(self) -> Result<(), Error> {
        match self.0 {
            Stage::Begun(batch) => batch.wait(),
            Stage::Committed => Ok(()),
            Stage::Failed(error) => Err(error),
        }
    }
}

#[derive(Debug)]
struct Shared<S> {
    store: Mutex<S>,
    queue: Mutex<Queue>,
    /// Rung for the thread.
    begun: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    /// What gathers.
    next: Gathering,
    /// What is being committed.
    running: Option<Arc<Batch>>,
    failed: Option<Error>,
    closing: bool,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Gathering {
    batch: Arc<Batch>,
    changes: Vec<Change>,
    requests: u64,
}

impl Gathering {
    fn is_empty(&self) -> bool {
        self.requests == 0
    }
}

/// The last commit.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    requests: u64,
    took: Duration,
}

impl Pace {
    /// How long the next commit waits for company: no longer than it is worth.
    fn patience(self) -> Duration {
        (self.took / 8).min(Duration::from_millis(2))
    }
}

/// How a commit ended, once for all who wait for it.
#[derive(Debug, Default)]
struct Batch {
    outcome: Mutex<Option<Result<(), Error>>>,
    ended: Condvar,
}

impl Batch {
    fn end(&self, outcome: Result<(), Error>) {
        *lock(&self.outcome) = Some(outcome);
        self.ended.notify_all();
    }

    fn wait(&self) -> Result<(), Error> {
        let mut outcome = lock(&self.outcome);
        loop {
            if let Some(outcome) = &*outcome {
                return outcome.clone();
            }
            outcome = self.ended.wait(outcome).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl<S: Store> Shared<S> {
    fn serve(&self) {
        let mut last = Pace::default();
        while let Some(work) = self.next(last) {
            let began = Instant::now();
            let commit =
                || self.store().commit(&work.changes).map_err(Error::store("write the store"));
            let outcome = catch_unwind(AssertUnwindSafe(commit))
                .unwrap_or_else(|_| Err(Error::store("write the store")(Panicked)));
            self.end(&work, outcome);
            last = Pace { requests: work.requests, took: began.elapsed() };
        }
    }

    /// Waits for something to commit. `None` when there will be no more.
    fn next(&self, last: Pace) -> Option<Gathering> {
        let mut queue = self.queue();
        while queue.next.is_empty() {
            if queue.closing {
                return None;
            }
            queue = self.begun.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        // Callers that were answered together come together again, given a moment: otherwise the first of
        // them would have a commit of its own, and every other commit would be one of a single request.
        if last.requests > 1 && !queue.closing {
            let fewer = |queue: &mut Queue| queue.next.requests < last.requests && !queue.closing;
            let waited = self.begun.wait_timeout_while(queue, last.patience(), fewer);
            (queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        let work = mem::take(&mut queue.next);
        queue.running = Some(work.batch.clone());
        Some(work)
    }

    fn end(&self, work: &Gathering, outcome: Result<(), Error>) {
        let mut queue = self.queue();
        queue.running = None;
        match &outcome {
            Ok(()) => {
                queue.counts.commits += 1;
                queue.counts.requests += work.requests;
                queue.counts.changes += work.changes.len() as u64;
            }
            Err(error) => {
                queue.counts.failures += 1;
                queue.failed = Some(error.clone());
                mem::take(&mut queue.next).batch.end(outcome.clone());
            }
        }
        drop(queue);
        work.batch.end(outcome);
    }

    fn store(&self) -> MutexGuard<'_, S> {
        lock(&self.store)
    }
}

impl<S> Shared<S> {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }
}

/// The state behind these locks is whole at any time; a panic under one has told its caller.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::durable::MemoryStore;

    /// Holds each commit at a barrier until the test lets it go, fails or panics when told to.
    struct Slow {
        inner: MemoryStore,
        gate: Arc<Barrier>,
        fail: Arc<AtomicBool>,
    }

    #[derive(Debug, thiserror::Error)]
    #[error("on purpose")]
    struct OnPurpose;

    impl Store for Slow {
        type Error = OnPurpose;

        fn load(&mut self, table: &str) -> Result<Vec<Entry>, OnPurpose> {
            Ok(self.inner.load(table).unwrap())
        }

        fn commit(&mut self, changes: &[Change]) -> Result<(), OnPurpose> {
            self.gate.wait();
            self.gate.wait();
            assert_ne!(changes[0].key, b"panic", "on purpose");
            if self.fail.load(Ordering::SeqCst) {
                return Err(OnPurpose);
            }
            let Ok(()) = self.inner.commit(changes);
            Ok(())
        }
    }

    struct Held {
        journal: Journal<Slow>,
        gate: Arc<Barrier>,
        fail: Arc<AtomicBool>,
    }

    fn held() -> Held {
        let (gate, fail) = (Arc::new(Barrier::new(2)), Arc::new(AtomicBool::new(false)));
        let store = Slow { inner: MemoryStore::default(), gate: gate.clone(), fail: fail.clone() };
        Held { journal: Journal::start(store).unwrap(), gate, fail }
    }

    fn put(key: &str) -> Vec<Change> {
        vec![Change::put("t", key, "v")]
    }

    fn keys(journal: &Journal<Slow>) -> Vec<Vec<u8>> {
        journal.load("t").unwrap().into_iter().map(|(key, _)| key).collect()
    }

    #[test]
    fn what_gathers_is_one_commit() {
        let Held { journal, gate, .. } = held();
        let first = journal.begin(put("a"));
        gate.wait();
        let rest: Vec<_> = ["b", "c", "d"].map(|key| journal.begin(put(key))).into();
        let all = journal.begin(Vec::new());
        gate.wait();
        first.wait().unwrap();
        gate.wait();
        gate.wait();
        for ticket in rest {
            ticket.wait().unwrap();
        }
        all.wait().unwrap();
        let counts = journal.counts();
        assert_eq!((counts.requests, counts.changes, counts.commits), (4, 4, 2));
        assert_eq!(keys(&journal), [b"a", b"b", b"c", b"d"]);
        journal.begin(Vec::new()).wait().unwrap();
        assert_eq!(journal.counts(), counts);
    }

    #[test]
    fn who_changes_nothing_waits_for_what_was_begun() {
        let Held { journal, gate, fail } = held();
        let first = journal.begin(put("a"));
        gate.wait();
        let none = journal.begin(Vec::new());
        fail.store(true, Ordering::SeqCst);
        gate.wait();
        first.wait().unwrap_err();
        none.wait().unwrap_err();
    }

    #[test]
    fn nothing_is_committed_behind_a_failure_until_somebody_has_looked() {
        let Held { journal, gate, fail } = held();
        fail.store(true, Ordering::SeqCst);
        let first = journal.begin(put("a"));
        gate.wait();
        let second = journal.begin(put("b"));
        gate.wait();
        first.wait().unwrap_err();
        second.wait().unwrap_err();
        fail.store(false, Ordering::SeqCst);
        let error = journal.begin(put("c")).wait().unwrap_err();
        assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "on purpose");
        assert!(journal.recover(|_| Err::<(), _>(error)).is_err());
        assert!(journal.failure().is_some());

        let entries = journal.recover(|store| store.load("t").map_err(Error::store("read")));
        assert_eq!(entries.unwrap(), []);
        let last = journal.begin(put("d"));
        gate.wait();
        gate.wait();
        last.wait().unwrap();
        assert_eq!(keys(&journal), [b"d"]);
        assert_eq!((journal.counts().commits, journal.counts().failures), (1, 1));
    }

    #[test]
    fn a_panic_of_the_store_is_a_failure() {
        let Held { journal, gate, .. } = held();
        let ticket = journal.begin(put("panic"));
        gate.wait();
        gate.wait();
        ticket.wait().unwrap_err();
        journal.recover(|_| Ok(())).unwrap();
        let ticket = journal.begin(put("b"));
        gate.wait();
        gate.wait();
        ticket.wait().unwrap();
    }

    #[test]
    fn dropping_it_commits_what_was_begun() {
        let Held { journal, gate, .. } = held();
        let first = journal.begin(put("a"));
        gate.wait();
        let second = journal.begin(put("b"));
        let dropping = thread::spawn(move || drop(journal));
        gate.wait();
        gate.wait();
        gate.wait();
        dropping.join().unwrap();
        first.wait().unwrap();
        second.wait().unwrap();
    }
}

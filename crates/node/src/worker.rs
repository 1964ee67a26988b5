use std::iter;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// A thread that does what several callers ask for at the same time as one act: whatever has
/// gathered while it was busy is its next batch.
///
/// It serves what is dear and costs the same for one as for many: a grace period, the deletion of links.
#[derive(Debug)]
pub(crate) struct Worker<J, R> {
    /// Only `None` while it is being dropped.
    jobs: Option<Sender<(J, Reply<R>)>>,
    threads: Vec<JoinHandle<()>>,
}

/// Where the thread answers.
type Reply<R> = Arc<Sender<R>>;

/// The most that one batch takes, so that the first of it does not wait for a thousand others.
const BATCH: usize = 256;

impl<J: Send + 'static, R: Clone + Send + 'static> Worker<J, R> {
    /// Starts the thread. Dropping the worker waits for its end, and so for what `act` owns.
    pub(crate) fn start(
        name: &str,
        act: impl FnMut(Vec<J>) -> R + Send + 'static,
    ) -> std::io::Result<Self> {
        Self::start_all(name, Duration::ZERO, [act])
    }

    /// Starts a thread for each of these, for acts that mostly wait, so that several may be under way.
    /// After a batch of several jobs the next begins no sooner than `spacing` after it: callers that
    /// come together come together again, and batches are worth more the larger they are.
    pub(crate) fn start_all<A: FnMut(Vec<J>) -> R + Send + 'static>(
        name: &str,
        spacing: Duration,
        acts: impl IntoIterator<Item = A>,
    ) -> std::io::Result<Self> {
        let (jobs, queue) = mpsc::channel();
        let queue = Arc::new(Queue {
            waiting: Mutex::new(Waiting { jobs: queue, crowded: None }),
            spacing,
        });
        let mut worker = Self { jobs: Some(jobs), threads: Vec::new() };
        for act in acts {
            let queue = queue.clone();
            // Netlink and the map calls need little; the default of 2 MiB is address
            // space that counts in some accounting.
            let thread = thread::Builder::new().name(name.to_owned()).stack_size(512 << 10);
            worker.threads.push(thread.spawn(move || serve(&queue, act))?);
        }
        Ok(worker)
    }

    /// Has `job` done, and waits for it. `None` if the thread has died.
    pub(crate) fn call(&self, job: J) -> Option<R> {
        self.begin(job).wait()
    }

    /// Has `job` done meanwhile.
    pub(crate) fn begin(&self, job: J) -> Begun<R> {
        self.begin_or_hear(job).0
    }

    /// The same, where somebody else may know earlier than the thread how it ended, and say so.
    pub(crate) fn begin_or_hear(&self, job: J) -> (Begun<R>, Weak<Sender<R>>) {
        let (reply, answer) = mpsc::channel();
        let reply = Arc::new(reply);
        // It keeps no wait going that the thread will not end.
        let hearsay = Arc::downgrade(&reply);
        if let Some(jobs) = &self.jobs {
            // A thread that has died drops the reply, and the wait ends.
            let _ = jobs.send((job, reply));
        }
        (Begun { answer }, hearsay)
    }
}

/// A job under way.
#[must_use]
pub(crate) struct Begun<R> {
    answer: Receiver<R>,
}

impl<R> Begun<R> {
    /// Waits until it is done. `None` if the thread has died.
    pub(crate) fn wait(self) -> Option<R> {
        self.answer.recv().ok()
    }
}

impl<J, R> Drop for Worker<J, R> {
    fn drop(&mut self) {
        drop(self.jobs.take());
        for thread in self.threads.drain(..) {
            // A panic of the thread has been told to its callers.
            let _ = thread.join();
        }
    }
}

/// Where jobs wait for a thread.
struct Queue<J, R> {
    waiting: Mutex<Waiting<J, R>>,
    /// After a batch of several, the next begins no sooner than this after that one began: callers that
    /// come together come together again.
    spacing: Duration,
}

struct Waiting<J, R> {
    jobs: Receiver<(J, Reply<R>)>,
    /// When the last batch began, if it was one of several jobs.
    crowded: Option<Instant>,
}

fn serve<J, R: Clone>(queue: &Queue<J, R>, mut act: impl FnMut(Vec<J>) -> R) {
    while let Some((jobs, replies)) = next_batch(queue) {
        let result = act(jobs);
        for reply in replies {
            // A caller that has gone needs no answer.
            let _ = reply.send(result.clone());
        }
    }
}

/// Waits for a job, and takes those that have gathered. `None` when there will be no more.
fn next_batch<J, R>(queue: &Queue<J, R>) -> Option<(Vec<J>, Vec<Reply<R>>)> {
    let mut waiting = queue.waiting.lock().unwrap_or_else(PoisonError::into_inner);
    let first = waiting.jobs.recv().ok()?;
    if let Some(began) = waiting.crowded {
        thread::sleep(queue.spacing.saturating_sub(began.elapsed()));
    }
    let rest = waiting.jobs.try_iter().take(BATCH - 1);
    let batch: Vec<_> = iter::once(first).chain(rest).collect();
    waiting.crowded = (batch.len() > 1).then(Instant::now);
    Some(batch.into_iter().unzip())
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn what_gathers_is_one_batch() {
        let batches = Arc::new(AtomicUsize::new(0));
        let entered = Arc::new(Barrier::new(2));
        let worker = Arc::new({
            let (batches, entered) = (batches.clone(), entered.clone());
            Worker::start("test", move |jobs: Vec<u32>| {
                if batches.fetch_add(1, Ordering::SeqCst) == 0 {
                    // Holds the first batch until the others have queued.
                    entered.wait();
                    entered.wait();
                }
                jobs.iter().sum::<u32>()
            })
            .unwrap()
        });
        let first = thread::spawn({
            let worker = worker.clone();
            move || worker.call(1)
        });
        entered.wait();
        let (reply, answers) = mpsc::channel();
        let reply = Arc::new(reply);
        for job in [10, 20, 30] {
            worker.jobs.as_ref().unwrap().send((job, reply.clone())).unwrap();
        }
        entered.wait();
        assert_eq!(first.join().unwrap(), Some(1));
        assert_eq!(answers.iter().take(3).collect::<Vec<_>>(), [60, 60, 60]);
        assert_eq!(batches.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn a_dead_worker_is_told() {
        let worker = Worker::start("test", |_: Vec<()>| -> () { panic!("on purpose") }).unwrap();
        assert_eq!(worker.call(()), None);
        assert_eq!(worker.call(()), None);
    }

    #[test]
    fn who_hears_early_is_answered_early_and_keeps_nobody_waiting() {
        let (finish, may_finish) = mpsc::channel::<()>();
        let worker = Worker::start("test", move |jobs: Vec<u32>| {
            may_finish.recv().unwrap();
            jobs[0]
        })
        .unwrap();
        let (begun, hearsay) = worker.begin_or_hear(1);
        hearsay.upgrade().unwrap().send(7).unwrap();
        assert_eq!(begun.wait(), Some(7));
        finish.send(()).unwrap();

        let dying = Worker::start("test", |_: Vec<()>| -> u32 { panic!("on purpose") }).unwrap();
        let (begun, hearsay) = dying.begin_or_hear(());
        assert_eq!(begun.wait(), None);
        assert!(hearsay.upgrade().is_none());
    }
}

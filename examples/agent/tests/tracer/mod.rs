//! Processes under `ptrace(2)`, killed or made to fail at a system call that matters.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    reason = "a test fails by panicking; its modules are public to it"
)]

mod effect;

use std::{
    collections::{BTreeSet, HashMap},
    fs, mem,
    path::PathBuf,
    sync::{Arc, Mutex, mpsc},
    thread,
    time::Duration,
};

pub use effect::{Effect, Kind};
use nix::{
    errno::Errno,
    libc,
    sys::{
        ptrace::{self, Options},
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid},
    },
    unistd::Pid,
};

/// What is done to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL as soon as the call has returned.
    Kill,
    /// The call is not executed and returns an error.
    Fail,
}

/// A call, told from others of its kind by how many came before: the order in which several threads
/// come to theirs is another each time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub effect: Effect,
    /// From one.
    pub nth: usize,
}

/// How many calls of one kind are told at most.
const OF_A_KIND: usize = 12;

/// A process, all threads of it, whose system calls are watched by a thread of ours.
///
/// It is not reaped here: whoever has started it may wait for it as ever.
pub struct Tracer {
    state: Arc<Mutex<State>>,
    ended: mpsc::Receiver<()>,
}

#[derive(Default)]
struct State {
    /// Calls are only looked at while it is.
    watching: bool,
    fault: Option<(Fault, Step)>,
    seen: Vec<Step>,
    hit: bool,
    started: Vec<Pid>,
}

impl Tracer {
    /// Takes hold of a process, which goes on afterwards. What it writes to the pipe of this name, as
    /// `/proc` shows it, is its answer.
    pub fn attach(process: u32, answers: Option<PathBuf>) -> Self {
        let leader = Pid::from_raw(process.try_into().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let watching = state.clone();
        let (held, holding) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        // Only the thread that has attached may ask. It ends with the process.
        thread::spawn(move || {
            let options = Options::PTRACE_O_EXITKILL
                | Options::PTRACE_O_TRACESYSGOOD
                | Options::PTRACE_O_TRACECLONE;
            seize_all(leader, options);
            held.send(()).unwrap();
            Watch { leader, answers, state: watching, within: HashMap::new() }.follow();
            // Nobody waits for it any more if a test has failed.
            let _ = end.send(());
        });
        holding.recv().unwrap();
        Self { state, ended }
    }

    /// Watches calls from now on, and does it at this one.
    pub fn arm(&self, fault: Option<(Fault, Step)>) {
        *self.state.lock().unwrap() = State { watching: true, fault, ..State::default() };
    }

    /// Ends that: the calls that were seen, and whether the fault was among them. Of one that is
    /// repeated again and again, as when something is waited for, the first few are told.
    pub fn disarm(&self) -> (Vec<Step>, bool) {
        let mut state = self.state.lock().unwrap();
        state.watching = false;
        let steps = mem::take(&mut state.seen);
        (steps.into_iter().filter(|step| step.nth <= OF_A_KIND).collect(), state.hit)
    }

    /// Waits until the process has ended. Before that its parent must not wait for it: the kernel
    /// would tell it what is meant for the tracer.
    pub fn wait(&self) {
        self.ended.recv_timeout(Duration::from_secs(90)).expect("it ends, and does not hang");
    }

    /// How many processes that it has started since it was armed and that still run.
    pub fn orphans(&self) -> usize {
        let state = self.state.lock().unwrap();
        state.started.iter().filter(|pid| fs::exists(format!("/proc/{pid}")).unwrap()).count()
    }
}

/// Attaches to all threads, also to those that come meanwhile.
fn seize_all(leader: Pid, options: Options) {
    let mut held = BTreeSet::new();
    loop {
        let entries = fs::read_dir(format!("/proc/{leader}/task")).unwrap();
        let threads = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let new: Vec<i32> = threads.map(|id| id.parse().unwrap()).collect();
        let new: Vec<i32> = new.into_iter().filter(|id| held.insert(*id)).collect();
        if new.is_empty() {
            return;
        }
        for thread in new.into_iter().map(Pid::from_raw) {
            match ptrace::seize(thread, options) {
                // It has ended, or the one that made it was held by then and so is it.
                Err(Errno::ESRCH | Errno::EPERM) => {}
                seized => seized.and_then(|()| ptrace::interrupt(thread)).unwrap(),
            }
        }
    }
}

struct Watch {
    leader: Pid,
    answers: Option<PathBuf>,
    state: Arc<Mutex<State>>,
    /// Threads that are in a system call, and what of it is to be done when it returns.
    within: HashMap<Pid, Option<Return>>,
}

enum Return {
    Fail(Errno),
    Kill {
        starts: bool,
    },
    /// A process was started.
    Start,
}

impl Watch {
    fn follow(mut self) {
        loop {
            let ours = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
            let some = WaitPidFlag::WEXITED | WaitPidFlag::WSTOPPED | WaitPidFlag::WNOWAIT | ours;
            let status = match waitid(Id::All, some) {
                Err(Errno::EINTR) => continue,
                Err(Errno::ECHILD) => return,
                changed => changed.unwrap(),
            };
            let thread = status.pid().unwrap();
            let ended = matches!(status, WaitStatus::Exited(..) | WaitStatus::Signaled(..));
            if ended && thread == self.leader {
                // It is for its parent to see.
                return;
            }
            let status = waitpid(thread, Some(ours)).unwrap();
            let signal = match status {
                WaitStatus::PtraceSyscall(_) => {
                    self.at_call(thread);
                    None
                }
                WaitStatus::Stopped(_, signal) => Some(signal),
                WaitStatus::PtraceEvent(..) => None,
                _ => {
                    self.within.remove(&thread);
                    continue;
                }
            };
            match ptrace::syscall(thread, signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn at_call(&mut self, thread: Pid) {
        // A thread of a process that was killed may be gone at any time.
        let Ok(registers) = ptrace::getregs(thread) else { return };
        let Some(end) = self.within.remove(&thread) else {
            let end = self.at_entry(thread, &registers);
            if let Some(Return::Fail(_)) = end {
                let orig_rax = u64::MAX;
                let _ = ptrace::setregs(thread, libc::user_regs_struct { orig_rax, ..registers });
            }
            self.within.insert(thread, end);
            return;
        };
        match end {
            Some(Return::Fail(errno)) => {
                let rax = i64::from(-(errno as i32)).cast_unsigned();
                let _ = ptrace::setregs(thread, libc::user_regs_struct { rax, ..registers });
            }
            Some(Return::Kill { starts }) => {
                if starts {
                    self.note_child(&registers);
                }
                let mut state = self.state.lock().unwrap();
                // A call may last longer than what it was made for: nobody waits for it any more.
                if state.watching {
                    state.hit = true;
                    kill(self.leader, Signal::SIGKILL).unwrap();
                }
            }
            Some(Return::Start) => self.note_child(&registers),
            None => {}
        }
    }

    fn note_child(&self, registers: &libc::user_regs_struct) {
        if let Ok(child @ 1..) = i32::try_from(registers.rax.cast_signed()) {
            self.state.lock().unwrap().started.push(Pid::from_raw(child));
        }
    }

    fn at_entry(&self, thread: Pid, registers: &libc::user_regs_struct) -> Option<Return> {
        let mut state = self.state.lock().unwrap();
        if !state.watching {
            return None;
        }
        let effect = Effect::of(thread, registers, self.answers.as_deref())?;
        let starts = effect.kind == Kind::Start;
        let nth = state.seen.iter().filter(|step| step.effect == effect).count() + 1;
        let step = Step { effect, nth };
        state.seen.push(step.clone());
        match &state.fault {
            Some((Fault::Kill, at)) if *at == step => Some(Return::Kill { starts }),
            Some((Fault::Fail, at)) if *at == step => {
                state.hit = true;
                Some(Return::Fail(step.effect.errno()))
            }
            _ => starts.then_some(Return::Start),
        }
    }
}

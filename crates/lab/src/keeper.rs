//! The process that ends a host's processes when the host is dropped or its owner dies.
//!
//! A parent-death signal would not do: it is sent when the *thread* that started a program ends,
//! and it does not reach what the program started in turn, such as a container's monitor.

use std::{
    collections::HashSet,
    fs, io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    thread,
    time::Duration,
};

use nix::{
    sys::{
        signal::{SigHandler, Signal, signal},
        wait::waitpid,
    },
    unistd::{ForkResult, Pid, fork, pipe2, setsid},
};

/// Rounds of killing before what is left is left (it hangs in the kernel): ten seconds.
const ROUNDS: u32 = 5_000;

/// The owner's side: closing the pipe sets the keeper to work.
#[derive(Debug)]
pub(crate) struct Keeper {
    pipe: Option<OwnedFd>,
    process: Pid,
}

impl Keeper {
    /// Starts a keeper for the namespaces of the calling thread, which it joins.
    pub(crate) fn start(spared: &HashSet<String>) -> io::Result<Self> {
        let (read, write) = pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        // SAFETY: the child runs `keep` and exits without returning. It allocates, which glibc
        // allows in the child of a process with threads, and touches no lock of the parent's.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => Ok(Self { pipe: Some(write), process: child }),
            ForkResult::Child => keep(&read, spared),
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.pipe.take());
        // It can only fail when the keeper was ended by someone else.
        let _ = waitpid(self.process, None);
    }
}

/// Names of all network namespaces that are pinned in the calling thread's mount namespace, and
/// those that belong to the machine: nothing in them is ever killed.
pub(crate) fn namespaces_of_others() -> io::Result<HashSet<String>> {
    let mut names = pinned_namespaces()?;
    for process in ["/proc/1", "/proc/self", "/proc/thread-self"] {
        for kind in ["net", "mnt"] {
            // Process 1 may be hidden from us.
            names.extend(name_of(process, kind));
        }
    }
    Ok(names)
}

fn keep(pipe: &OwnedFd, spared: &HashSet<String>) -> ! {
    let pipe = pipe.as_raw_fd();
    detach(pipe);
    wait_for_end(pipe);
    let own = std::process::id();
    let clean = (0..ROUNDS).any(|_| {
        let found = end_all(spared, own);
        if found != 0 {
            thread::sleep(Duration::from_millis(2));
        }
        found == 0
    });
    // SAFETY: `_exit` takes any number; handlers of the parent's must not run here.
    unsafe { libc::_exit(i32::from(!clean)) }
}

/// Out of the owner's terminal session, and without any of its files: a pipe that stayed open here
/// would keep its reader waiting.
fn detach(pipe: RawFd) {
    let _ = setsid();
    for number in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGPIPE] {
        // SAFETY: ignoring a signal installs no handler.
        let _ = unsafe { signal(number, SigHandler::SigIgn) };
    }
    let pipe = pipe.unsigned_abs();
    if pipe > 0 {
        // SAFETY: no owner of these files runs in this process any more.
        unsafe { libc::close_range(0, pipe - 1, 0) };
    }
    // SAFETY: as above.
    unsafe { libc::close_range(pipe + 1, u32::MAX, 0) };
    // SAFETY: the name is a string that ends with zero.
    unsafe { libc::prctl(libc::PR_SET_NAME, c"podwire-lab".as_ptr()) };
}

fn wait_for_end(pipe: RawFd) {
    let mut byte = 0u8;
    loop {
        // SAFETY: one byte is written to one byte.
        let read = unsafe { libc::read(pipe, (&raw mut byte).cast(), 1) };
        let interrupted =
            read < 0 && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted;
        if !interrupted {
            return;
        }
    }
}

/// Kills every process in the host's namespaces or in a network namespace pinned there, and tells
/// how many there were.
fn end_all(spared: &HashSet<String>, own: u32) -> usize {
    let mut ours = pinned_namespaces().unwrap_or_default();
    ours.extend(name_of("/proc/self", "net"));
    ours.extend(name_of("/proc/self", "mnt"));
    let ours: HashSet<_> = ours.difference(spared).cloned().collect();
    let Ok(processes) = fs::read_dir("/proc") else { return 0 };
    processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|&process| process != own && end(process, &ours))
        .count()
}

fn end(process: u32, ours: &HashSet<String>) -> bool {
    let Ok(number) = libc::pid_t::try_from(process) else { return false };
    // A file descriptor of the process first: its number may go to another one in between.
    // SAFETY: takes two integers.
    let handle = unsafe { libc::syscall(libc::SYS_pidfd_open, number, 0) };
    if handle < 0 {
        return false;
    }
    let folder = format!("/proc/{process}");
    let inside =
        ["net", "mnt"].iter().any(|kind| name_of(&folder, kind).is_some_and(|n| ours.contains(&n)));
    if inside {
        // SAFETY: the handle is open; the information is null, as allowed.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, handle, libc::SIGKILL, 0, 0) };
    }
    // SAFETY: the handle is ours and closed once; it fits in an int, as every descriptor does.
    unsafe { libc::syscall(libc::SYS_close, handle) };
    inside
}

fn name_of(process: &str, kind: &str) -> Option<String> {
    Some(fs::read_link(format!("{process}/ns/{kind}")).ok()?.to_str()?.to_owned())
}

/// The roots of all nsfs mounts, which are named like `net:[4026532281]`.
fn pinned_namespaces() -> io::Result<HashSet<String>> {
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo")?;
    Ok(mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(3))
        .filter(|root| root.starts_with("net:["))
        .map(str::to_owned)
        .collect())
}

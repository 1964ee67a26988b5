//! Running one plugin: what delegation and the runtime's side stand on.
//!
//! [`Executable::find`] looks a plugin up, [`Executable::call`] runs it with the variables of an
//! [`Invocation`] and judges how it ended. The plugin inherits this process's environment, with
//! every variable of the protocol replaced.
//!
//! A plugin cannot hold up its caller: input and outputs are served together, so that neither
//! side waits for the other; what it prints is read up to [`MAX_OUTPUT`]; when its time is up, it
//! and its process group are killed. What it says on standard error goes to ours as it comes.
//! Having a process group of its own, it goes on if this process is killed or interrupted: what it
//! has begun is not left half done.
//!
//! It needs Linux 5.3 (`pidfd_open`).

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{self, Child, ChildStderr, ChildStdin, ChildStdout, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde_json::Value;

use crate::json::parse_object;
use crate::types::Object;
use crate::{Args, Code, Command, ContainerId, Error, IfName, Netns};

/// How long a plugin may take, if nothing else is said: half of what a kubelet waits for its
/// runtime, so that the one who called can still clean up and answer.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// How much a plugin may print, in bytes.
pub const MAX_OUTPUT: usize = 1024 * 1024;

/// How much of its standard error is kept for the message, in bytes.
const MAX_TAIL: usize = 2048;

/// What a longer time is cut to: a point in time must be left to hold.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);

/// How long a file that somebody is writing is waited for, and how often.
const BUSY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_millis(50));

/// How long a killed plugin is waited for: one that the kernel holds does not end.
const BURIAL: Duration = Duration::from_secs(1);

/// The variables of the protocol.
const VARIABLES: [&str; 6] =
    ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"];

/// What a plugin is told in its environment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Invocation {
    /// `CNI_COMMAND`.
    pub command: Command,
    /// `CNI_CONTAINERID`.
    pub container_id: Option<ContainerId>,
    /// `CNI_NETNS`.
    pub netns: Option<Netns>,
    /// `CNI_IFNAME`.
    pub ifname: Option<IfName>,
    /// `CNI_ARGS`.
    pub args: Args,
    /// `CNI_PATH`.
    pub path: Vec<PathBuf>,
}

impl Invocation {
    /// A command that is about no container: STATUS, GC, VERSION. The others have fields to set.
    #[must_use]
    pub fn new(command: Command, path: &[PathBuf]) -> Self {
        Self {
            command,
            container_id: None,
            netns: None,
            ifname: None,
            args: Args::default(),
            path: path.to_vec(),
        }
    }

    /// The variables. One that is not there is not set, not even as an empty one.
    fn variables(&self) -> Result<Vec<(&'static str, OsString)>, Error> {
        let path = std::env::join_paths(&self.path).map_err(|error| {
            Error::new(Code::INVALID_ENVIRONMENT_VARIABLES, "CNI_PATH cannot be written")
                .with_source(&error)
        })?;
        let text = |text: Option<&str>| text.map(OsString::from);
        let args = self.args.to_string();
        let values = [
            text(Some(self.command.as_str())),
            text(self.container_id.as_ref().map(ContainerId::as_str)),
            text(self.netns.as_ref().map(Netns::as_str)),
            text(self.ifname.as_ref().map(IfName::as_str)),
            text(Some(args.as_str()).filter(|args| !args.is_empty())),
            Some(path),
        ];
        let pairs = VARIABLES.into_iter().zip(values);
        Ok(pairs.filter_map(|(name, value)| Some((name, value?))).collect())
    }
}

/// A plugin that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executable {
    name: String,
    file: PathBuf,
}

impl Executable {
    /// Looks a plugin up by the `type` of a configuration, in the folders of `CNI_PATH`.
    ///
    /// # Errors
    ///
    /// Code 7 if `name` is not a file's name, or if no folder has such a file; the message names
    /// both.
    pub fn find(name: &str, path: &[PathBuf]) -> Result<Self, Error> {
        require_file_name(name)?;
        // An empty entry would make it a search of PATH.
        let files = path.iter().filter(|folder| !folder.as_os_str().is_empty());
        let found = files.map(|folder| folder.join(name)).find(|file| file.is_file());
        let Some(file) = found else {
            let folders: Vec<_> = path.iter().map(|folder| folder.display().to_string()).collect();
            let msg = format!("plugin {name:?} was not found");
            let details = if folders.is_empty() {
                "no folder to look in was given (CNI_PATH)".to_owned()
            } else {
                format!("looked in {}", folders.join(", "))
            };
            return Err(Error::new(Code::INVALID_NETWORK_CONFIG, msg).with_details(details));
        };
        Ok(Self { name: name.to_owned(), file })
    }

    /// The plugin's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it was found.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Runs the plugin with `config` as its input, and gives what it printed.
    ///
    /// # Errors
    ///
    /// The plugin's own error with its code, the message preceded by the plugin's name. Code 999
    /// if it failed without saying anything readable, with the end of its standard error as
    /// details; code 5 if it could not be run or did not end in time; code 6 if it printed more
    /// than [`MAX_OUTPUT`].
    pub fn call(
        &self,
        invocation: &Invocation,
        config: &Object,
        timeout: Duration,
    ) -> Result<Vec<u8>, Error> {
        let variables = invocation.variables()?;
        let input = serde_json::to_vec(config).map_err(|error| Error::internal(&error))?;
        let mut command = process::Command::new(&self.file);
        for name in VARIABLES {
            command.env_remove(name);
        }
        command.envs(variables).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let io_failure = |what: &str, error: &io::Error| {
            let msg = format!("plugin {}: cannot {what} {}", self.name, self.file.display());
            Error::new(Code::IO_FAILURE, msg).with_source(error)
        };
        let deadline = Instant::now() + timeout.min(LONGEST_TIMEOUT);
        let mut child = spawn(&mut command, deadline).map_err(|error| io_failure("run", &error))?;
        let mut talk = Talk::default();
        match talk.hold(&mut child, &input, deadline) {
            Ok(Some(status)) => self.judge(status, talk),
            Ok(None) => {
                kill(&mut child);
                let msg = format!(
                    "plugin {}: {} took longer than {} s and was killed",
                    self.name,
                    invocation.command,
                    timeout.as_secs_f32()
                );
                Err(Error::new(Code::IO_FAILURE, msg).with_details(talk.stderr_text()))
            }
            Err(error) => {
                kill(&mut child);
                Err(io_failure("talk to", &error))
            }
        }
    }

    fn judge(&self, status: ExitStatus, talk: Talk) -> Result<Vec<u8>, Error> {
        let name = &self.name;
        if talk.overflown {
            let msg = format!("plugin {name}: printed more than {MAX_OUTPUT} bytes");
            return Err(Error::new(Code::DECODING_FAILURE, msg));
        }
        if status.success() {
            return Ok(talk.stdout);
        }
        if let Some(error) = reported(&talk.stdout) {
            let msg = format!("plugin {name}: {}", error.msg());
            return Err(Error::new(error.code(), msg).with_details(error.details()));
        }
        let how = match (status.code(), status.signal()) {
            (Some(code), _) => format!("exited with {code}"),
            (None, Some(signal)) => format!("was killed by signal {signal}"),
            (None, None) => "ended in an unknown way".to_owned(),
        };
        let msg = format!("plugin {name}: {how} without an error result");
        Err(Error::new(Code::INTERNAL, msg).with_details(talk.stderr_text()))
    }

    /// What cannot be read in an answer of this plugin's.
    pub(crate) fn unreadable(&self, error: &dyn std::error::Error) -> Error {
        let msg = format!("plugin {}: succeeded, but its answer cannot be read", self.name);
        Error::new(Code::DECODING_FAILURE, msg).with_source(error)
    }
}

/// Starts a plugin. While it is being replaced its file may be open for writing, and cannot be run:
/// libcni waits as well.
fn spawn(command: &mut process::Command, deadline: Instant) -> io::Result<Child> {
    let (longest, pause) = BUSY;
    let deadline = deadline.min(Instant::now() + longest);
    loop {
        match command.spawn() {
            Err(error)
                if error.kind() == io::ErrorKind::ExecutableFileBusy
                    && Instant::now() < deadline =>
            {
                thread::sleep(pause);
            }
            outcome => return outcome,
        }
    }
}

/// Refuses a `type` that names something else than a file in a folder of plugins.
pub(crate) fn require_file_name(name: &str) -> Result<(), Error> {
    if !name.is_empty() && !matches!(name, "." | "..") && !name.contains(['/', '\0']) {
        return Ok(());
    }
    let msg = format!(
        "type {name:?} is not the name of a plugin: it must be a file's name, without folder"
    );
    Err(Error::new(Code::INVALID_NETWORK_CONFIG, msg))
}

/// The error result that a plugin printed.
fn reported(stdout: &[u8]) -> Option<Error> {
    let object = parse_object(stdout).ok()?;
    let code = u32::try_from(object.get("code")?.as_u64()?).ok()?;
    let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default();
    let msg = match text("msg") {
        "" => "failed without a message",
        msg => msg,
    };
    Some(Error::new(Code::from_wire(code), msg).with_details(text("details")))
}

/// What goes to and fro while a plugin runs.
#[derive(Debug, Default)]
struct Talk {
    stdout: Vec<u8>,
    overflown: bool,
    /// The end of what was said on standard error.
    tail: Vec<u8>,
}

impl Talk {
    /// Serves the plugin until it has ended; `None` if its time was up before.
    ///
    /// What it wrote before it ended is in the pipes then, and all that counts: a process that it
    /// left behind may keep them open for ever.
    fn hold(
        &mut self,
        child: &mut Child,
        input: &[u8],
        deadline: Instant,
    ) -> io::Result<Option<ExitStatus>> {
        let ended: OwnedFd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
        let mut stdin = child.stdin.take();
        let mut stdout = child.stdout.take();
        let mut stderr = child.stderr.take();
        for pipe in [
            stdin.as_ref().map(AsFd::as_fd),
            stdout.as_ref().map(AsFd::as_fd),
            stderr.as_ref().map(AsFd::as_fd),
        ]
        .into_iter()
        .flatten()
        {
            ioctl_fionbio(pipe, true)?;
        }
        let mut rest = input;
        loop {
            serve_input(&mut stdin, &mut rest)?;
            self.serve_stdout(&mut stdout)?;
            self.serve_stderr(&mut stderr)?;
            // Only now: what came between the last reading and the end must not be missed.
            if wait_for(&ended, &stdin, &stdout, &stderr, deadline)? {
                self.serve_stdout(&mut stdout)?;
                self.serve_stderr(&mut stderr)?;
                return child.wait().map(Some);
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
        }
    }

    fn serve_stdout(&mut self, pipe: &mut Option<ChildStdout>) -> io::Result<()> {
        drain(pipe, |bytes| {
            let room = MAX_OUTPUT - self.stdout.len();
            self.overflown |= bytes.len() > room;
            self.stdout.extend_from_slice(&bytes[..bytes.len().min(room)]);
        })
    }

    fn serve_stderr(&mut self, pipe: &mut Option<ChildStderr>) -> io::Result<()> {
        drain(pipe, |bytes| {
            // Whether anybody reads ours is no matter of the plugin's.
            let _ = io::stderr().write_all(bytes);
            self.tail.extend_from_slice(bytes);
            let excess = self.tail.len().saturating_sub(MAX_TAIL);
            self.tail.drain(..excess);
        })
    }

    fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.tail).trim().to_owned()
    }
}

/// Waits until there is something to do; tells whether the plugin has ended.
fn wait_for(
    ended: &OwnedFd,
    stdin: &Option<ChildStdin>,
    stdout: &Option<ChildStdout>,
    stderr: &Option<ChildStderr>,
    deadline: Instant,
) -> io::Result<bool> {
    let mut fds = vec![PollFd::new(ended, PollFlags::IN)];
    fds.extend(stdin.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::OUT)));
    fds.extend(stdout.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
    fds.extend(stderr.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
    let left = deadline.saturating_duration_since(Instant::now());
    let left = Timespec::try_from(left).map_err(io::Error::other)?;
    match poll(&mut fds, Some(&left)) {
        Ok(_) => Ok(!fds[0].revents().is_empty()),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Writes what the pipe takes. Closes it at the end, which the plugin waits for, and when the
/// plugin has closed it: it need not read all.
fn serve_input(pipe: &mut Option<ChildStdin>, rest: &mut &[u8]) -> io::Result<()> {
    while let Some(open) = pipe {
        if rest.is_empty() {
            *pipe = None;
            break;
        }
        match open.write(rest) {
            Ok(written) => *rest = &rest[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => *pipe = None,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads what there is. Bounded, so that one who prints without end does not keep us here.
fn drain<P: Read>(pipe: &mut Option<P>, mut take: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = [0; 16 * 1024];
    for _ in 0..64 {
        let Some(open) = pipe else { break };
        match open.read(&mut buffer) {
            Ok(0) => *pipe = None,
            Ok(read) => take(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Kills the plugin and what it has started, as far as that stayed in its process group.
fn kill(child: &mut Child) {
    let pid = Pid::from_child(child);
    // The child has not been waited for, so that its number is still its own.
    let _ = kill_process_group(pid, Signal::KILL);
    if let Ok(ended) = pidfd_open(pid, PidfdFlags::empty()) {
        let _ = wait_for(&ended, &None, &None, &None, Instant::now() + BURIAL);
    }
    let _ = child.try_wait();
}

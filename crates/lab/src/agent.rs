use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io,
    os::unix::{fs::FileExt, net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        memfd::{MFdFlags, memfd_create},
        signal::{Signal, kill},
    },
    unistd::Pid,
};

use crate::{Error, Host, Result};

/// How an agent is started: a binary, its arguments, and the socket that tells it is there.
#[derive(Clone, Debug)]
pub struct AgentSpec {
    host: Host,
    program: PathBuf,
    arguments: Vec<OsString>,
    variables: Vec<(OsString, OsString)>,
    socket: PathBuf,
    patience: Duration,
}

impl AgentSpec {
    /// An agent in `host`, without arguments, that listens on `/run/podwire/podwire.sock`.
    pub fn new(host: &Host, program: impl Into<PathBuf>) -> Self {
        Self {
            host: host.clone(),
            program: program.into(),
            arguments: Vec::new(),
            variables: Vec::new(),
            socket: "/run/podwire/podwire.sock".into(),
            patience: Duration::from_secs(20),
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(self, arguments: impl IntoIterator<Item = S>) -> Self {
        arguments.into_iter().fold(self, Self::arg)
    }

    /// Adds an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.variables.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// The socket to wait for, as a path inside the host.
    #[must_use]
    pub fn socket(mut self, path: impl Into<PathBuf>) -> Self {
        self.socket = path.into();
        self
    }

    /// Starts the agent and waits until its socket accepts a connection.
    ///
    /// # Errors
    /// [`Error::AgentEnded`] or [`Error::AgentSilent`], with what the agent said.
    pub fn start(self) -> Result<Agent> {
        let log = memfd_create(c"agent log", MFdFlags::MFD_CLOEXEC)
            .map_err(|e| self.failed("make a log for", e.into()))?;
        let log = File::from(log);
        let child = self.spawn(&log)?;
        let mut agent = Agent { spec: self, child, log };
        agent.wait_for_socket()?;
        Ok(agent)
    }

    fn spawn(&self, log: &File) -> Result<Child> {
        let output = || log.try_clone().map(Stdio::from);
        let spawn = || {
            let mut command = self.host.command(&self.program);
            command.args(&self.arguments).envs(self.variables.iter().cloned());
            command.stdin(Stdio::null()).stdout(output()?).stderr(output()?).spawn()
        };
        spawn().map_err(|e| self.failed("start", e))
    }

    fn failed(&self, operation: &'static str, source: io::Error) -> Error {
        Error::Program { operation, program: self.program.clone(), source }
    }
}

/// A running agent, or one that was killed and can be started again. Killed on drop.
#[derive(Debug)]
pub struct Agent {
    spec: AgentSpec,
    child: Child,
    log: File,
}

impl Agent {
    /// Its process number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its socket, as a path inside the host.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.spec.socket
    }

    /// Its host.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.spec.host
    }

    /// All it wrote to standard output and standard error since it was first started.
    #[must_use]
    pub fn log(&self) -> String {
        // The offset is shared with the agent, so read without moving it.
        let length = self.log.metadata().map_or(0, |m| usize::try_from(m.len()).unwrap_or(0));
        let mut text = vec![0; length];
        let read = self.log.read_at(&mut text, 0).unwrap_or(0);
        String::from_utf8_lossy(&text[..read]).into_owned()
    }

    /// Ends it with SIGKILL and waits for its end. Nothing happens if it has ended already.
    ///
    /// # Errors
    /// [`Error::Program`] when the kernel refuses.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        let killed = self.child.kill().and_then(|()| self.child.wait());
        killed.map_err(|e| self.spec.failed("kill", e))
    }

    /// Asks it to end with SIGTERM and waits until it has.
    ///
    /// # Errors
    /// [`Error::Program`] when it has not ended in time; it goes on running then.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        let mut end = || -> io::Result<ExitStatus> {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            let number = libc::pid_t::try_from(self.child.id()).map_err(io::Error::other)?;
            kill(Pid::from_raw(number), Signal::SIGTERM)?;
            let start = Instant::now();
            while start.elapsed() < self.spec.patience {
                if let Some(status) = self.child.try_wait()? {
                    return Ok(status);
                }
                thread::sleep(Duration::from_millis(2));
            }
            Err(io::ErrorKind::TimedOut.into())
        };
        end().map_err(|e| self.spec.failed("terminate", e))
    }

    /// Starts it again as it was started, after it has ended, and waits for its socket.
    ///
    /// # Errors
    /// As [`AgentSpec::start`].
    pub fn start_again(&mut self) -> Result<()> {
        // Two agents at once are never meant.
        self.kill()?;
        self.child = self.spec.spawn(&self.log)?;
        self.wait_for_socket()
    }

    /// Number of files it has open.
    ///
    /// # Errors
    /// [`Error::Program`] when it has ended.
    pub fn open_files(&self) -> Result<usize> {
        let files = fs::read_dir(format!("/proc/{}/fd", self.pid()));
        files.map(Iterator::count).map_err(|e| self.spec.failed("list open files of", e))
    }

    /// Its resident memory, in bytes, without that of maps which it shares with kernel programs.
    ///
    /// # Errors
    /// [`Error::Program`] when it has ended.
    pub fn resident_bytes(&self) -> Result<u64> {
        let smaps = fs::read_to_string(format!("/proc/{}/smaps", self.pid()))
            .map_err(|e| self.spec.failed("read the memory of", e))?;
        let (mut kib, mut is_of_a_map) = (0, false);
        for line in smaps.lines() {
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("Rss:") if !is_of_a_map => {
                    kib += words.next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0);
                }
                Some(field) if field.ends_with(':') => {}
                // The head of a mapping.
                _ => is_of_a_map = line.ends_with(":bpf-map"),
            }
        }
        let ended = || self.spec.failed("read the memory of", io::ErrorKind::NotFound.into());
        if kib == 0 { Err(ended()) } else { Ok(kib * 1024) }
    }

    fn wait_for_socket(&mut self) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < self.spec.patience {
            let ended = self.child.try_wait().map_err(|e| self.spec.failed("watch", e))?;
            if let Some(status) = ended {
                let program = self.spec.program.clone();
                return Err(Error::AgentEnded { program, status, log: self.log() });
            }
            if self.spec.host.run(|| UnixStream::connect(&self.spec.socket)).is_ok() {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(2));
        }
        let socket = self.spec.socket.clone();
        Err(Error::AgentSilent { socket, waited: start.elapsed(), log: self.log() })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended already; there is no one to tell.
        let _ = self.kill();
    }
}

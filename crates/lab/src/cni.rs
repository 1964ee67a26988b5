use std::{
    ffi::{OsStr, OsString},
    io::{self, Read, Write},
    mem::MaybeUninit,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{Error, Host, Result};

/// A CNI plugin's binary with one network configuration, called in a host as a runtime calls it.
#[derive(Clone, Debug)]
pub struct Cni {
    host: Host,
    plugin: PathBuf,
    config: Value,
    search_path: OsString,
}

/// The interface that a call is about: container, namespace, interface name, arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// `CNI_CONTAINERID`
    pub container_id: String,
    /// `CNI_NETNS`, as a path inside the host; may be empty.
    pub netns: PathBuf,
    /// `CNI_IFNAME`
    pub ifname: String,
    /// `CNI_ARGS`; not set when empty.
    pub args: String,
}

/// What a call of a plugin printed and how it ended.
#[derive(Clone, Debug)]
pub struct CniOutput {
    /// The plugin's exit status.
    pub status: ExitStatus,
    /// All of standard output.
    pub stdout: String,
    /// All of standard error.
    pub stderr: String,
    /// From before the process was made to its end.
    pub elapsed: Duration,
    /// The largest resident set, in bytes, that the plugin or a process it waited for ever had.
    ///
    /// Linux counts what a process had before it became the plugin, too: a copy of the caller's
    /// memory. Less than that is never seen, so a caller that wants to know is small itself.
    pub peak_bytes: u64,
}

impl Attachment {
    /// `eth0` of the given container, in the given namespace.
    pub fn new(container_id: impl Into<String>, netns: impl Into<PathBuf>) -> Self {
        Self {
            container_id: container_id.into(),
            netns: netns.into(),
            ifname: "eth0".to_owned(),
            args: String::new(),
        }
    }

    /// The same with another interface name.
    #[must_use]
    pub fn ifname(mut self, ifname: impl Into<String>) -> Self {
        self.ifname = ifname.into();
        self
    }

    /// The same with `CNI_ARGS`, such as `K8S_POD_NAME=a;K8S_POD_NAMESPACE=b`.
    #[must_use]
    pub fn args(mut self, args: impl Into<String>) -> Self {
        self.args = args.into();
        self
    }

    fn variables(&self) -> Vec<(&'static str, &OsStr)> {
        let mut variables: Vec<(_, &OsStr)> = vec![
            ("CNI_CONTAINERID", self.container_id.as_ref()),
            ("CNI_NETNS", self.netns.as_ref()),
            ("CNI_IFNAME", self.ifname.as_ref()),
        ];
        if !self.args.is_empty() {
            variables.push(("CNI_ARGS", self.args.as_ref()));
        }
        variables
    }
}

impl Cni {
    /// `plugin` in `host` with `config` on standard input; `CNI_PATH` is the plugin's folder.
    pub fn new(host: &Host, plugin: impl Into<PathBuf>, config: Value) -> Self {
        let plugin = plugin.into();
        let search_path = plugin.parent().unwrap_or(Path::new("")).as_os_str().to_owned();
        Self { host: host.clone(), plugin, config, search_path }
    }

    /// The same with another `CNI_PATH`.
    #[must_use]
    pub fn search_path(mut self, path: impl Into<OsString>) -> Self {
        self.search_path = path.into();
        self
    }

    /// The network configuration.
    #[must_use]
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// ADD.
    ///
    /// # Errors
    /// [`Error::Cni`] with the plugin's error object, or [`Error::CniOutput`] without one.
    pub fn add(&self, attachment: &Attachment) -> Result<Value> {
        self.verb("ADD", attachment, None)?.json("ADD")
    }

    /// DEL, with or without the result of ADD.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn del(&self, attachment: &Attachment, previous: Option<&Value>) -> Result<()> {
        self.verb("DEL", attachment, previous)?.success("DEL")
    }

    /// CHECK, with the result of ADD.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn check(&self, attachment: &Attachment, previous: &Value) -> Result<()> {
        self.verb("CHECK", attachment, Some(previous))?.success("CHECK")
    }

    /// VERSION.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn version(&self) -> Result<Value> {
        self.call("VERSION", &[], self.config.to_string().as_bytes())?.json("VERSION")
    }

    /// STATUS.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn status(&self) -> Result<()> {
        self.call("STATUS", &[], self.config.to_string().as_bytes())?.success("STATUS")
    }

    /// GC: everything but `valid` may go.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn gc(&self, valid: &[Attachment]) -> Result<()> {
        let valid: Vec<_> = valid
            .iter()
            .map(|a| json!({ "containerID": a.container_id, "ifname": a.ifname }))
            .collect();
        let config = self.config_with("cni.dev/valid-attachments", Value::from(valid));
        self.call("GC", &[], config.to_string().as_bytes())?.success("GC")
    }

    /// Calls the plugin with exactly these variables (and `CNI_COMMAND`, `CNI_PATH`, `PATH`) and
    /// this standard input, however wrong. A variable given here replaces one of those.
    ///
    /// # Errors
    /// [`Error::Program`] when it cannot be started.
    pub fn call(
        &self,
        verb: &str,
        variables: &[(&str, &OsStr)],
        stdin: &[u8],
    ) -> Result<CniOutput> {
        let start = Instant::now();
        let mut command = self.host.command(&self.plugin);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("CNI_COMMAND", verb).env("CNI_PATH", &self.search_path);
        command.envs(variables.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut run = || -> io::Result<CniOutput> {
            let mut child = command.spawn()?;
            let input = child.stdin.take();
            let errors = child.stderr.take();
            thread::scope(|scope| {
                scope.spawn(move || {
                    // A plugin that refuses early need not read it all.
                    let _ = input.map(|mut input| input.write_all(stdin));
                });
                let errors = scope.spawn(move || read_all(errors));
                let stdout = read_all(child.stdout.take())?;
                let stderr = errors.join().map_err(|_| io::Error::other("reader panicked"))??;
                let (status, peak_bytes) = wait(&child)?;
                Ok(CniOutput { status, stdout, stderr, elapsed: start.elapsed(), peak_bytes })
            })
        };
        run().map_err(|source| Error::Program {
            operation: "call CNI plugin",
            program: self.plugin.clone(),
            source,
        })
    }

    /// Calls a verb as a runtime does, with the result of ADD where there is one, and gives all of
    /// what became of it, an error of the plugin's among them.
    ///
    /// # Errors
    /// [`Error::Program`] when the plugin cannot be started.
    pub fn verb(&self, verb: &str, to: &Attachment, previous: Option<&Value>) -> Result<CniOutput> {
        let config = match previous {
            Some(previous) => self.config_with("prevResult", previous.clone()),
            None => self.config.clone(),
        };
        self.call(verb, &to.variables(), config.to_string().as_bytes())
    }

    fn config_with(&self, key: &str, value: Value) -> Value {
        let mut config = self.config.clone();
        config[key] = value;
        config
    }
}

impl CniOutput {
    /// Standard output as JSON.
    ///
    /// # Errors
    /// As [`success`](Self::success), or [`Error::CniOutput`] when it is no JSON.
    pub fn json(&self, verb: &str) -> Result<Value> {
        self.success(verb)?;
        serde_json::from_str(&self.stdout).map_err(|_| self.unintelligible(verb))
    }

    /// Whether the call succeeded.
    ///
    /// # Errors
    /// [`Error::Cni`] with the plugin's error object, or [`Error::CniOutput`] without one.
    pub fn success(&self, verb: &str) -> Result<()> {
        if self.status.success() {
            return Ok(());
        }
        let object: Value =
            serde_json::from_str(&self.stdout).map_err(|_| self.unintelligible(verb))?;
        let code = object["code"].as_u64().ok_or_else(|| self.unintelligible(verb))?;
        let text = |key: &str| object[key].as_str().unwrap_or_default().to_owned();
        Err(Error::Cni {
            command: verb.to_owned(),
            code,
            msg: text("msg"),
            details: text("details"),
            stderr: self.stderr.clone(),
        })
    }

    fn unintelligible(&self, verb: &str) -> Error {
        Error::CniOutput {
            command: verb.to_owned(),
            status: self.status,
            stdout: self.stdout.clone(),
            stderr: self.stderr.clone(),
        }
    }
}

/// Waits for the end of a process: how it ended, and its peak memory in bytes.
fn wait(child: &Child) -> io::Result<(ExitStatus, u64)> {
    let process = libc::pid_t::try_from(child.id()).map_err(io::Error::other)?;
    let (mut status, mut usage) = (0, MaybeUninit::<libc::rusage>::zeroed());
    loop {
        // SAFETY: both places are ours to write, and of the types that the kernel fills.
        let ended = unsafe { libc::wait4(process, &raw mut status, 0, usage.as_mut_ptr()) };
        if ended == process {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    // SAFETY: all zeroes are a valid value, and the kernel has written it.
    let usage = unsafe { usage.assume_init() };
    let peak_bytes = u64::try_from(usage.ru_maxrss).unwrap_or_default() * 1024;
    Ok((ExitStatus::from_raw(status), peak_bytes))
}

fn read_all(from: Option<impl Read>) -> io::Result<String> {
    let mut bytes = Vec::new();
    from.map(|mut from| from.read_to_end(&mut bytes)).transpose()?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

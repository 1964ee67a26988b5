//! Running programs as root or as nobody, whoever the caller is.

use std::{
    ffi::OsString,
    fs,
    io::{self, ErrorKind, IsTerminal},
    os::unix::{
        fs::PermissionsExt,
        process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::stat::{Mode, umask},
    unistd::geteuid,
};

use crate::{Result, own_program, report::note};

/// The user without any privilege.
pub const NOBODY: u32 = 65534;

/// How the caller becomes root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// The caller is root.
    Root,
    /// By sudo, which asks for no password.
    Sudo,
    /// Not at all.
    None,
}

impl Privilege {
    /// What the caller has.
    pub fn find() -> Self {
        if geteuid().is_root() {
            return Self::Root;
        }
        let quiet = Command::new("sudo").args(["-n", "true"]).stderr(Stdio::null()).status();
        if quiet.is_ok_and(|status| status.success()) { Self::Sudo } else { Self::None }
    }

    /// A command that runs `program` as root, with sudo's environment where sudo is needed.
    pub fn command(self, program: &Path) -> Command {
        match self {
            Self::Root | Self::None => Command::new(program),
            Self::Sudo => {
                let mut command = Command::new("sudo");
                command.args(["-n", "--"]).arg(program);
                command
            }
        }
    }

    /// A command that runs `program` as this user.
    pub fn command_as(self, user: u32, program: &Path, run: &Run<'_>) -> Result<Command> {
        let mut command = self.command(&own_program()?);
        command.arg("as").arg("--user").arg(user.to_string());
        command
            .arg("--folder")
            .arg(run.folder)
            .arg("--seconds")
            .arg(run.limit.as_secs().to_string());
        for path in run.reachable {
            command.arg("--reachable").arg(path);
        }
        for (name, value) in run.variables {
            let mut pair = OsString::from(format!("{name}="));
            pair.push(value);
            command.arg("--env").arg(pair);
        }
        command.arg("--").arg(program);
        Ok(command)
    }
}

/// A command that runs this program as root. Where sudo needs a password, a person is asked for it.
pub fn own_program_as_root() -> Result<Command> {
    let privilege = Privilege::find();
    if privilege == Privilege::Root {
        return Ok(Command::new(own_program()?));
    }
    let mut sudo = Command::new("sudo");
    // A person may be asked for a password, a pipe may not.
    if privilege == Privilege::Sudo || !io::stdin().is_terminal() {
        sudo.arg("-n");
    }
    note("the run needs root: network namespaces and eBPF; sudo is asked for it");
    sudo.arg("--").arg(own_program()?);
    Ok(sudo)
}

/// Circumstances of a program that runs as another user.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// Its working folder.
    pub folder: &'a Path,
    /// Folders it must be able to reach.
    pub reachable: &'a [PathBuf],
    /// Its environment, besides `PATH` and `HOME`.
    pub variables: &'a [(&'static str, OsString)],
    /// It is killed after this time.
    pub limit: Duration,
}

#[derive(Debug, Args)]
pub struct AsOptions {
    #[arg(long)]
    user: u32,
    #[arg(long)]
    folder: PathBuf,
    #[arg(long)]
    seconds: u64,
    #[arg(long)]
    reachable: Vec<PathBuf>,
    #[arg(long = "env")]
    variables: Vec<OsString>,
    #[arg(required = true, last = true)]
    command: Vec<OsString>,
}

/// Runs a command as the given user, without capabilities if that is not root, with a clean
/// environment, and kills it when its time is over.
pub fn run_as(options: &AsOptions) -> Result<ExitCode> {
    let (program, arguments) = options.command.split_first().ok_or("no command")?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command.env("HOME", if options.user == 0 { "/root" } else { "/nonexistent" });
    command.envs(options.variables.iter().filter_map(|pair| {
        let (name, value) = pair.to_str()?.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    }));
    if options.user != 0 && geteuid().is_root() {
        open_ways(&options.reachable)?;
        // With other groups than its own gone too: std drops them along with root.
        command.uid(options.user).gid(options.user);
        nix::sys::prctl::set_no_new_privs()?;
    }
    std::env::set_current_dir(&options.folder)?;
    let mut child = command.spawn().map_err(|error| match error.kind() {
        ErrorKind::PermissionDenied => {
            format!("user {} may not run {}", options.user, program.to_string_lossy()).into()
        }
        _ => Box::<dyn std::error::Error>::from(error),
    })?;
    let end = Instant::now() + Duration::from_secs(options.seconds);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= end {
            child.kill()?;
            child.wait()?;
            return Err(format!("killed after {} seconds", options.seconds).into());
        }
        thread::sleep(Duration::from_millis(5));
    };
    if let Some(signal) = status.signal() {
        return Err(format!("ended by signal {signal}").into());
    }
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Lets every user reach these folders, in mount namespace of this process only: a checkout below
/// root's home is out of others' reach, whatever its own permissions.
fn open_ways(folders: &[PathBuf]) -> Result<()> {
    let closed: Vec<(&PathBuf, PathBuf)> =
        folders.iter().filter_map(|folder| Some((folder, closed_parent(folder)?))).collect();
    if closed.is_empty() {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    // Hold on to each folder, hide the closed one above it, and put it back in its place.
    let held = tempfile::tempdir_in("/tmp")?;
    umask(Mode::from_bits_truncate(0o022));
    mount(Some("tmpfs"), held.path(), Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
    for (number, (folder, _)) in closed.iter().enumerate() {
        let place = held.path().join(number.to_string());
        fs::create_dir(&place)?;
        let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount(Some(folder.as_path()), &place, None::<&str>, flags, None::<&str>)?;
    }
    for (_, parent) in &closed {
        if closed_parent(&parent.join("x")).is_some() {
            mount(Some("tmpfs"), parent, Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))?;
        }
    }
    for (number, (folder, _)) in closed.iter().enumerate() {
        let place = held.path().join(number.to_string());
        if !folder.exists() {
            fs::create_dir_all(folder)?;
            let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(Some(&place), folder.as_path(), None::<&str>, flags, None::<&str>)?;
        }
    }
    umount2(held.path(), MntFlags::MNT_DETACH)?;
    Ok(held.close()?)
}

/// The first folder above this one that others may not pass.
fn closed_parent(folder: &Path) -> Option<PathBuf> {
    let mut above: Vec<_> = folder.ancestors().skip(1).collect();
    above.reverse();
    let open = |path: &Path| fs::metadata(path).is_ok_and(|m| m.permissions().mode() & 0o001 != 0);
    above.into_iter().find(|path| !open(path)).map(Path::to_owned)
}

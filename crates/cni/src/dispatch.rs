use std::any::Any;
use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd as _, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::stdio::dup2_stdout;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::config::{decode, stated_version, version_of};
use crate::environment::Problems;
use crate::types::Object;
use crate::{
    Add, Args, Check, Code, Command, ContainerId, Del, Environment, Error, Gc, IfName, Netns,
    NetworkConfig, Plugin, SpecVersion, Status,
};

/// How a call of a plugin ended; the exit code of its process.
#[derive(Debug)]
#[must_use = "the exit code of the process depends on it"]
pub enum Exit {
    /// The plugin did what was asked, and a result, if there is one, was written.
    Success,
    /// The plugin failed and said so.
    Failure(Error),
    /// The answer could not be written. What the plugin did stands; a runtime takes the ADD for
    /// failed and calls DEL.
    Unreported(io::Error),
}

impl Exit {
    /// Whether the process should exit with zero.
    #[must_use]
    pub const fn is_success(&self) -> bool {
        matches!(self, Self::Success)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        if exit.is_success() { Self::SUCCESS } else { Self::FAILURE }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Success => f.write_str("success"),
            Self::Failure(error) => error.fmt(f),
            Self::Unreported(error) => write!(f, "cannot write the answer: {error}"),
        }
    }
}

/// Runs a plugin with the environment, standard input and standard output of this process.
///
/// This is what `main` of a plugin returns. An answer that could not be written is told on
/// standard error. From a terminal nothing is read, from elsewhere for [`INPUT_TIMEOUT`] at most:
/// a caller that never closes its end gets an error, with code 5.
///
/// Nothing but the answer reaches standard output: while the plugin runs, what it or a program that
/// it starts prints there goes to standard error.
pub fn run(plugin: &impl Plugin) -> ExitCode {
    let environment = Environment::new(std::env::vars_os());
    let exit = match aside() {
        Ok(stdout) => read_and_dispatch(plugin, &environment, stdout),
        // No more files may be opened. The plugin may still be able to release what it has.
        Err(_) => read_and_dispatch(plugin, &environment, io::stdout().lock()),
    };
    if let Exit::Unreported(_) = &exit {
        // Nothing is left to report to if this fails as well.
        let _ = writeln!(io::stderr(), "{exit}");
    }
    exit.into()
}

/// How long [`run`] waits for the end of its input. Runtimes write it before they do anything else.
pub const INPUT_TIMEOUT: Duration = Duration::from_secs(30);

/// Puts standard output aside for the answer, and standard error in its place.
fn aside() -> io::Result<File> {
    let answers = io::stdout().as_fd().try_clone_to_owned()?;
    dup2_stdout(io::stderr())?;
    Ok(answers.into())
}

fn read_and_dispatch(plugin: &impl Plugin, environment: &Environment, stdout: impl Write) -> Exit {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        return dispatch(plugin, environment, io::empty(), stdout);
    }
    match stdin.as_fd().try_clone_to_owned() {
        Ok(stdin) => dispatch(plugin, environment, Patient::new(stdin, INPUT_TIMEOUT), stdout),
        Err(_) => dispatch(plugin, environment, stdin.lock(), stdout),
    }
}

/// An input that is waited for so long and no longer.
struct Patient {
    input: File,
    timeout: Duration,
    deadline: Instant,
}

impl Patient {
    fn new(input: OwnedFd, timeout: Duration) -> Self {
        Self { input: input.into(), timeout, deadline: Instant::now() + timeout }
    }
}

impl Read for Patient {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&self.input, PollFlags::IN)], Some(&left))? {
            0 => {
                let text = format!("it did not end within {} s", self.timeout.as_secs_f32());
                Err(io::Error::new(io::ErrorKind::TimedOut, text))
            }
            _ => self.input.read(buffer),
        }
    }
}

/// Runs a plugin: reads the parameters, checks them, calls it, writes the answer.
///
/// The answer is one JSON object: the result of ADD or VERSION, or the error result, also if the
/// plugin panics. DEL, CHECK, STATUS and GC that succeed write nothing, as specified. Answers are
/// in the version of the configuration.
pub fn dispatch(
    plugin: &impl Plugin,
    environment: &Environment,
    stdin: impl Read,
    stdout: impl Write,
) -> Exit {
    let mut version = None;
    let outcome = guarded(|| call(plugin, environment, stdin, &mut version));
    match outcome {
        Ok(None) => Exit::Success,
        Ok(Some(answer)) => match write(stdout, &answer) {
            Ok(()) => Exit::Success,
            Err(error) => Exit::Unreported(error),
        },
        Err(error) => {
            let newest = || newest(plugin).as_str().to_owned();
            let answer = error.to_value_as(&version.unwrap_or_else(newest));
            match write(stdout, &answer) {
                Ok(()) => Exit::Failure(error),
                Err(error) => Exit::Unreported(error),
            }
        }
    }
}

/// What is to be written on success. `version` becomes what an error has to be written in, as soon
/// as that is known.
fn call(
    plugin: &impl Plugin,
    environment: &Environment,
    stdin: impl Read,
    version: &mut Option<String>,
) -> Result<Option<Value>, Error> {
    // Without a command nobody promises that there is an input, or that it ends.
    if !environment.has_command() {
        environment.command()?;
    }
    let Some(parameters) = Parameters::read(plugin, environment).transpose() else {
        return Ok(Some(version_result(plugin, stdin)));
    };
    // The input is read even if the environment is no good: it says in which version to answer.
    let object = read(stdin);
    if let Ok(object) = &object {
        // An error repeats whatever the configuration says, even what is refused; one that says
        // nothing is read as 0.1.0, and answered so.
        let stated = stated_version(object).unwrap_or(SpecVersion::UNSTATED.as_str());
        *version = Some(stated.to_owned());
    }
    let parameters = parameters?;
    let object = object?;
    require_version(plugin, &object, parameters.command())?;
    let config = NetworkConfig::from_object(object)?;

    let path = environment.path();
    match parameters {
        Parameters::Add(Container { container_id, ifname, args }, netns) => {
            let prev_result = config.prev_result()?;
            let add = Add { container_id, netns, ifname, args, path, config, prev_result };
            let success = plugin.add(&add)?;
            Ok(Some(success.to_value(add.config.version())))
        }
        Parameters::Check(Container { container_id, ifname, args }, netns) => {
            let prev_result = config.prev_result()?.ok_or_else(|| {
                Error::new(Code::INVALID_NETWORK_CONFIG, "prevResult is missing; CHECK needs it")
            })?;
            let check = Check { container_id, netns, ifname, args, path, config, prev_result };
            plugin.check(&check).map(|()| None)
        }
        Parameters::Del(Container { container_id, ifname, args }, netns) => {
            let prev_result = config.prev_result().ok().flatten();
            let del = Del { container_id, netns, ifname, args, path, config, prev_result };
            plugin.del(&del).map(|()| None)
        }
        Parameters::Status => {
            let status = Status { path, config };
            plugin.status(&status).map(|()| None)
        }
        Parameters::Gc => {
            let valid_attachments = config.valid_attachments()?;
            let gc = Gc { path, config, valid_attachments };
            plugin.gc(&gc).map(|()| None)
        }
    }
}

/// What the environment says, as far as the command looks at it.
enum Parameters {
    Add(Container, Netns),
    Del(Container, Option<Netns>),
    Check(Container, Netns),
    Status,
    Gc,
}

struct Container {
    container_id: ContainerId,
    ifname: IfName,
    args: Args,
}

impl Parameters {
    /// `None` for VERSION, which looks at none.
    fn read(plugin: &impl Plugin, environment: &Environment) -> Result<Option<Self>, Error> {
        let mut problems = Problems::default();
        let command = environment.command()?;
        let parameters = match command {
            Command::Version => return Ok(None),
            Command::Status => Some(Self::Status),
            Command::Gc => Some(Self::Gc),
            Command::Del => {
                let netns = environment.optional("CNI_NETNS", &mut problems);
                Container::read(plugin, environment, &mut problems)
                    .map(|container| Self::Del(container, netns))
            }
            Command::Add | Command::Check => {
                let netns = environment.required("CNI_NETNS", &mut problems);
                let container = Container::read(plugin, environment, &mut problems);
                container.zip(netns).map(|(container, netns)| match command {
                    Command::Add => Self::Add(container, netns),
                    _ => Self::Check(container, netns),
                })
            }
        };
        problems.into_result()?;
        Ok(Some(parameters.unwrap_or_else(|| unreachable!("whatever is missing is a problem"))))
    }

    const fn command(&self) -> Command {
        match self {
            Self::Add(..) => Command::Add,
            Self::Del(..) => Command::Del,
            Self::Check(..) => Command::Check,
            Self::Status => Command::Status,
            Self::Gc => Command::Gc,
        }
    }
}

impl Container {
    fn read(
        plugin: &impl Plugin,
        environment: &Environment,
        problems: &mut Problems,
    ) -> Option<Self> {
        let container_id = environment.required("CNI_CONTAINERID", problems);
        let ifname = environment.required("CNI_IFNAME", problems);
        let args = environment.args(problems);
        if let Some(known) = plugin.known_args()
            && let Err(error) = args.require_known(known)
        {
            problems.push(error.msg().to_owned());
        }
        Some(Self { container_id: container_id?, ifname: ifname?, args })
    }
}

/// VERSION looks at no variable but the command, and at the input for nothing but the version to
/// repeat; podman calls it with made-up values, people without any input.
fn version_result(plugin: &impl Plugin, stdin: impl Read) -> Value {
    #[derive(Deserialize)]
    struct Input {
        #[serde(rename = "cniVersion")]
        version: String,
    }
    // From a stream, so that an input that does not end is no obstacle once the object is there.
    let limited = stdin.take(NetworkConfig::MAX_LEN as u64);
    let mut inputs = serde_json::Deserializer::from_reader(limited).into_iter::<Input>();
    let stated = match inputs.next() {
        Some(Ok(input)) if !input.version.is_empty() => Some(input.version),
        _ => None,
    };
    let supported: Vec<&str> =
        plugin.supported_versions().iter().map(|version| version.as_str()).collect();
    json!({
        "cniVersion": stated.unwrap_or_else(|| newest(plugin).as_str().to_owned()),
        "supportedVersions": supported,
    })
}

fn read(stdin: impl Read) -> Result<Object, Error> {
    let mut bytes = Vec::new();
    stdin.take(NetworkConfig::MAX_LEN as u64 + 1).read_to_end(&mut bytes).map_err(|error| {
        Error::new(Code::IO_FAILURE, "cannot read the network configuration").with_source(&error)
    })?;
    decode(&bytes)
}

/// The version comes first: of a configuration in another one nothing else can be judged.
fn require_version(plugin: &impl Plugin, object: &Object, command: Command) -> Result<(), Error> {
    let supported = plugin.supported_versions();
    let version = version_of(object).and_then(|version| {
        let msg = || format!("cniVersion {version} is not supported");
        let known = supported.contains(&version).then_some(version);
        known.ok_or_else(|| Error::new(Code::INCOMPATIBLE_CNI_VERSION, msg()))
    });
    let version = version.map_err(|error| {
        let list: Vec<&str> = supported.iter().map(|version| version.as_str()).collect();
        error.with_details(format!("supported are {}", list.join(", ")))
    })?;
    if version.has(command) {
        return Ok(());
    }
    let since = command.since();
    let msg = format!("cniVersion {version} has no {command}, which came with {since}");
    Err(Error::new(Code::INCOMPATIBLE_CNI_VERSION, msg))
}

/// Calls the plugin's code; a panic in it becomes an error like any other.
fn guarded<T>(call: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    // The plugin is not called again, so that no broken invariant of its can be seen.
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        Err(Error::new(Code::INTERNAL, "the plugin panicked").with_details(panic_text(&*panic)))
    })
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

fn newest(plugin: &impl Plugin) -> SpecVersion {
    plugin.supported_versions().iter().copied().max().unwrap_or(SpecVersion::UNSTATED)
}

fn write(mut stdout: impl Write, answer: &Value) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    stdout.write_all(&line)?;
    stdout.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Success;

    struct Nothing;

    impl Plugin for Nothing {
        fn add(&self, _: &Add) -> Result<Success, Error> {
            Ok(Success::default())
        }

        fn del(&self, _: &Del) -> Result<(), Error> {
            Ok(())
        }

        fn check(&self, _: &Check) -> Result<(), Error> {
            Ok(())
        }
    }

    fn answer(command: &'static str, written: &[u8]) -> Value {
        let variables = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"].map(|name| (name, "x"));
        let environment = Environment::new(variables.into_iter().chain([("CNI_COMMAND", command)]));
        let (input, mut caller) = io::pipe().unwrap();
        caller.write_all(written).unwrap();
        let mut answer = Vec::new();
        let input = Patient::new(input.into(), Duration::from_millis(50));
        let _ = dispatch(&Nothing, &environment, input, &mut answer);
        // Only now: a caller that never closes its end.
        drop(caller);
        serde_json::from_slice(&answer).unwrap()
    }

    #[test]
    fn an_input_that_does_not_end_is_not_waited_for() {
        let config = br#"{"cniVersion": "1.0.0", "name": "net", "type": "x"}"#;
        for written in [&config[..], &config[..9], b""] {
            let error = answer("ADD", written);
            assert_eq!(error["code"], 5, "{error}");
            assert_eq!(error["details"], "it did not end within 0.05 s");
        }
        assert_eq!(answer("VERSION", config)["cniVersion"], "1.0.0");
        assert_eq!(answer("VERSION", b"")["cniVersion"], "1.1.0");
    }
}

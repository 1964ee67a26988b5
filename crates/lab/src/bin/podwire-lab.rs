//! Runs a command in a lab host, to look around in by hand.
//!
//! `podwire-lab [--pods N] [-- COMMAND [ARGUMENT..]]`: makes a host with pods `pod1` to `podN`
//! and runs the command in it. Without one, it prints the numbers of the host's and the pods'
//! network namespaces and waits for the end of standard input.

use std::{
    env,
    error::Error,
    io::{self, Read, Write},
    process::ExitCode,
};

use podwire_lab::Host;

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(io::stderr(), "podwire-lab: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                let _ = writeln!(io::stderr(), "  because: {cause}");
                source = cause.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode, Box<dyn Error>> {
    let (pods, command) = parse(env::args().skip(1))?;
    let host = Host::new()?;
    let pods =
        (1..=pods).map(|n| host.add_pod(&format!("pod{n}"))).collect::<Result<Vec<_>, _>>()?;
    let Some((program, arguments)) = command.split_first() else {
        let mut stdout = io::stdout().lock();
        let own = host.run(|| std::fs::read_link("/proc/thread-self/ns/net"))?;
        writeln!(stdout, "host {}", own.display())?;
        for pod in &pods {
            writeln!(stdout, "{} net:[{}]", pod.name(), pod.inode()?)?;
        }
        stdout.flush()?;
        io::stdin().read_to_end(&mut Vec::new())?;
        return Ok(ExitCode::SUCCESS);
    };
    let status = host.command(program).args(arguments).status()?;
    Ok(status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .map_or(ExitCode::FAILURE, ExitCode::from))
}

fn parse(
    mut arguments: impl Iterator<Item = String>,
) -> Result<(usize, Vec<String>), Box<dyn Error>> {
    let mut pods = 0;
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--" => return Ok((pods, arguments.collect())),
            "--pods" => pods = arguments.next().ok_or("--pods needs a number")?.parse()?,
            other => {
                return Err(
                    format!("{other}: usage: podwire-lab [--pods N] [-- COMMAND ..]").into()
                );
            }
        }
    }
    Ok((pods, Vec::new()))
}

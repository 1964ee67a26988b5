//! A runtime in a few lines: attaches a network namespace to a network for as long as it runs.
//!
//!     attach CONFIGURATION NETNS
//!
//! CONFIGURATION is a `.conflist` file; plugins are those of `CNI_PATH` or of /opt/cni/bin.

#![expect(clippy::print_stdout, reason = "it is a program for people")]

use std::env;
use std::error::Error;
use std::io;
use std::path::Path;

use podwire_cni::runtime::{Cache, Network, Request, Runtime};

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = env::args().skip(1).collect();
    let [file, netns] = words.as_slice() else { return Err("attach CONFIGURATION NETNS".into()) };
    let network = Network::from_file(Path::new(file))?;
    let path = env::var_os("CNI_PATH").unwrap_or("/opt/cni/bin".into());
    let cache = Cache::new("/var/lib/cni");
    let runtime = Runtime::new(env::split_paths(&path), cache);

    let mut request =
        Request::new(format!("attach-{}", std::process::id()).parse()?, "eth0".parse()?);
    request.netns = Some(netns.parse()?);
    let success = runtime.add(&network, &request)?;
    println!("{:#}\nENTER detaches", success.to_value(network.version()));
    io::stdin().read_line(&mut String::new())?;
    Ok(runtime.del(&network, &request)?)
}

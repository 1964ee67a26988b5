//! Having another plugin do a part of the work: a main plugin its IPAM plugin, or any plugin any
//! other.
//!
//! A delegated plugin gets the same environment and the same configuration, as section 4 of the
//! specification demands. A main plugin whose configuration may name an IPAM plugin:
//!
//! ```no_run
//! use podwire_cni::delegate::Delegate;
//! use podwire_cni::types::{Interface, Success};
//! use podwire_cni::{Add, Check, Del, Error, Gc, Plugin, Status};
//!
//! struct Main;
//!
//! impl Plugin for Main {
//!     fn add(&self, add: &Add) -> Result<Success, Error> {
//!         let Some(ipam) = Delegate::ipam(&add.config, &add.path)? else {
//!             return Ok(Success::default());
//!         };
//!         // The addresses go back if what follows fails.
//!         ipam.add_then(add, |mut success| {
//!             // ... create the interface, give it `success.ips` ...
//!             success.interfaces.push(Interface::in_sandbox(add.ifname.as_str(), add.netns.as_str()));
//!             for ip in &mut success.ips {
//!                 ip.interface = Some(0);
//!             }
//!             Ok(success)
//!         })
//!     }
//!
//!     fn del(&self, del: &Del) -> Result<(), Error> {
//!         // ... remove the interface; only then may its addresses be somebody else's ...
//!         Delegate::ipam(&del.config, &del.path)?.map_or(Ok(()), |ipam| ipam.del(del))
//!     }
//!
//!     fn check(&self, check: &Check) -> Result<(), Error> {
//!         Delegate::ipam(&check.config, &check.path)?.map_or(Ok(()), |ipam| ipam.check(check))
//!     }
//!
//!     fn status(&self, status: &Status) -> Result<(), Error> {
//!         Delegate::ipam(&status.config, &status.path)?.map_or(Ok(()), |ipam| ipam.status(status))
//!     }
//!
//!     fn gc(&self, gc: &Gc) -> Result<(), Error> {
//!         Delegate::ipam(&gc.config, &gc.path)?.map_or(Ok(()), |ipam| ipam.gc(gc))
//!     }
//! }
//! ```

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::exec::{DEFAULT_TIMEOUT, Executable, Invocation};
use crate::json::parse_object;
use crate::types::Success;
use crate::{Add, Check, Code, Command, Del, Error, Gc, NetworkConfig, Status};

/// A plugin that work is delegated to.
///
/// What fails in it is told with its own code, and a message that begins with its name.
#[derive(Clone, Debug)]
pub struct Delegate {
    plugin: Executable,
    role: Role,
    timeout: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Assigns addresses, knows no interfaces.
    Ipam,
    Any,
}

impl Delegate {
    /// Looks up any plugin, in the folders that the caller has been given (`add.path`).
    ///
    /// # Errors
    ///
    /// Code 7 if `plugin` is not a file's name or is in none of the folders.
    pub fn find(plugin: &str, path: &[PathBuf]) -> Result<Self, Error> {
        let plugin = Executable::find(plugin, path)?;
        Ok(Self { plugin, role: Role::Any, timeout: DEFAULT_TIMEOUT })
    }

    /// Looks up the plugin that the configuration names under `ipam.type`; `None` if it names
    /// none.
    ///
    /// # Errors
    ///
    /// As [`find`](Self::find).
    pub fn ipam(config: &NetworkConfig, path: &[PathBuf]) -> Result<Option<Self>, Error> {
        let Some(name) = config.ipam_plugin() else { return Ok(None) };
        Ok(Some(Self { role: Role::Ipam, ..Self::find(name, path)? }))
    }

    /// Gives the plugin another time per call than [`DEFAULT_TIMEOUT`].
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// The plugin's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.plugin.name()
    }

    /// Has the plugin do an ADD.
    ///
    /// If that fails, its DEL is called before this returns, as the specification demands. If
    /// something fails later, calling DEL is up to the caller; [`add_then`](Self::add_then) does
    /// it.
    ///
    /// Of an IPAM plugin's result, `interfaces` and references to them are dropped.
    ///
    /// # Errors
    ///
    /// The plugin's; code 6 if its result cannot be read, or if an IPAM plugin assigned no
    /// address. A DEL that failed as well is told in the details.
    pub fn add(&self, add: &Add) -> Result<Success, Error> {
        self.call(&add_invocation(add, Command::Add), &add.config)
            .and_then(|stdout| self.success(&stdout, &add.config))
            .map_err(|error| self.undo(add, error))
    }

    /// Has the plugin do an ADD, then does `then` with its result; if that fails, has the plugin
    /// do a DEL.
    ///
    /// # Errors
    ///
    /// As [`add`](Self::add), and whatever `then` fails with. A DEL that failed as well is told in
    /// the details.
    pub fn add_then<T>(
        &self,
        add: &Add,
        then: impl FnOnce(Success) -> Result<T, Error>,
    ) -> Result<T, Error> {
        then(self.add(add)?).map_err(|error| self.undo(add, error))
    }

    /// Has the plugin do a DEL.
    ///
    /// # Errors
    ///
    /// The plugin's.
    pub fn del(&self, del: &Del) -> Result<(), Error> {
        let mut invocation = Invocation::new(Command::Del, &del.path);
        invocation.container_id = Some(del.container_id.clone());
        invocation.netns.clone_from(&del.netns);
        invocation.ifname = Some(del.ifname.clone());
        invocation.args = del.args.clone();
        self.call(&invocation, &del.config).map(drop)
    }

    /// Has the plugin do a CHECK.
    ///
    /// # Errors
    ///
    /// The plugin's.
    pub fn check(&self, check: &Check) -> Result<(), Error> {
        let mut invocation = Invocation::new(Command::Check, &check.path);
        invocation.container_id = Some(check.container_id.clone());
        invocation.netns = Some(check.netns.clone());
        invocation.ifname = Some(check.ifname.clone());
        invocation.args = check.args.clone();
        self.call(&invocation, &check.config).map(drop)
    }

    /// Has the plugin do a STATUS.
    ///
    /// # Errors
    ///
    /// The plugin's.
    pub fn status(&self, status: &Status) -> Result<(), Error> {
        self.call(&Invocation::new(Command::Status, &status.path), &status.config).map(drop)
    }

    /// Has the plugin do a GC.
    ///
    /// # Errors
    ///
    /// The plugin's.
    pub fn gc(&self, gc: &Gc) -> Result<(), Error> {
        self.call(&Invocation::new(Command::Gc, &gc.path), &gc.config).map(drop)
    }

    fn call(&self, invocation: &Invocation, config: &NetworkConfig) -> Result<Vec<u8>, Error> {
        self.plugin.call(invocation, config.object(), self.timeout)
    }

    fn success(&self, stdout: &[u8], config: &NetworkConfig) -> Result<Success, Error> {
        let object = parse_object(stdout).map_err(|error| self.plugin.unreadable(&error))?;
        let mut success = Success::from_value(Value::Object(object), config.version())
            .map_err(|error| self.plugin.unreadable(&error))?;
        if self.role == Role::Ipam {
            if success.ips.is_empty() {
                let msg = format!("plugin {}: assigned no address", self.name());
                return Err(Error::new(Code::DECODING_FAILURE, msg));
            }
            success.interfaces.clear();
            for ip in &mut success.ips {
                ip.interface = None;
            }
        }
        Ok(success)
    }

    /// Calls DEL for an ADD, and gives the error with what became of that.
    fn undo(&self, add: &Add, error: Error) -> Error {
        match self.call(&add_invocation(add, Command::Del), &add.config) {
            Ok(_) => error,
            Err(second) => error.with_more(&format!("undoing the ADD failed as well: {second}")),
        }
    }
}

fn add_invocation(add: &Add, command: Command) -> Invocation {
    let mut invocation = Invocation::new(command, &add.path);
    invocation.container_id = Some(add.container_id.clone());
    invocation.netns = Some(add.netns.clone());
    invocation.ifname = Some(add.ifname.clone());
    invocation.args = add.args.clone();
    invocation
}

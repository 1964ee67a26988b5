//! Network sysctls, which every namespace has for itself.
//!
//! `/proc/sys/net` shows those of the thread that opens a file there. The functions with a namespace
//! work on a thread inside it; the others in the caller's.

use std::ffi::{OsStr, OsString};
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::str::FromStr;

use podwire_netlink::{Family, IfName};

use crate::{Error, Netns};

/// The path of a sysctl below `/proc/sys`, which begins with `net/`.
///
/// ```
/// use podwire_netns::sysctl::Key;
/// let key: Key = "net/ipv4/ip_forward".parse()?;
/// assert!("kernel/hostname".parse::<Key>().is_err());
/// # Ok::<(), podwire_netns::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(OsString);

impl Key {
    /// The setting of an interface: `net/ipv4/conf/eth0/rp_filter`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidSysctl`] unless `setting` is one word.
    pub fn conf(family: Family, interface: &IfName, setting: &str) -> Result<Self, Error> {
        Self::of_interface(family, "conf", interface, setting)
    }

    /// Whether the namespace is a router: `net/ipv4/ip_forward`, `net/ipv6/conf/all/forwarding`.
    #[must_use]
    pub fn forwarding(family: Family) -> Self {
        Self(OsString::from(match family {
            Family::V4 => "net/ipv4/ip_forward",
            Family::V6 => "net/ipv6/conf/all/forwarding",
        }))
    }

    /// The neighbour setting of an interface: `net/ipv4/neigh/eth0/gc_stale_time`.
    ///
    /// # Errors
    ///
    /// As [`conf`](Self::conf).
    pub fn neigh(family: Family, interface: &IfName, setting: &str) -> Result<Self, Error> {
        Self::of_interface(family, "neigh", interface, setting)
    }

    fn of_interface(
        family: Family,
        folder: &str,
        interface: &IfName,
        setting: &str,
    ) -> Result<Self, Error> {
        if !is_word(setting) {
            return Err(invalid(setting, "a setting is one word"));
        }
        let mut key = OsString::from(format!("net/ipv{}/{folder}/", family.version()));
        key.push(OsStr::from_bytes(interface.as_bytes()));
        key.push("/");
        key.push(setting);
        Ok(Self(key))
    }

    fn shown(&self) -> String {
        self.0.to_string_lossy().into_owned()
    }
}

impl FromStr for Key {
    type Err = Error;

    fn from_str(key: &str) -> Result<Self, Self::Err> {
        if !key.starts_with("net/") {
            return Err(invalid(key, "it does not begin with net/"));
        }
        if key.split('/').any(|part| matches!(part, "" | "." | "..")) || key.contains('\0') {
            return Err(invalid(key, "it is no plain path"));
        }
        Ok(Self(key.into()))
    }
}

/// Whether something had to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ensured {
    /// It had another value.
    Changed,
    /// It had this value already.
    Unchanged,
}

/// Reads a sysctl of the calling thread's namespace, without the line end.
///
/// # Errors
///
/// [`Error::Sysctl`]; [`Error::is_not_found`] when there is no such sysctl or interface, or the
/// kernel is without IPv6.
pub fn read(key: &Key) -> Result<String, Error> {
    let mut value = fs::read_to_string(path(key)).map_err(|source| Error::Sysctl {
        operation: "read",
        key: key.shown(),
        source,
    })?;
    value.truncate(value.trim_end().len());
    Ok(value)
}

/// Writes a sysctl of the calling thread's namespace.
///
/// # Errors
///
/// As [`read`].
pub fn write(key: &Key, value: &str) -> Result<(), Error> {
    // In one write, since the kernel takes each for a whole value. Never created: a file below
    // /proc cannot be.
    let open = OpenOptions::new().write(true).open(path(key));
    open.and_then(|mut file| file.write_all(value.as_bytes())).map_err(|source| Error::Sysctl {
        operation: "write",
        key: key.shown(),
        source,
    })
}

/// Writes a sysctl of the calling thread's namespace unless it has this value. Some writes do more
/// than they seem to: `forwarding` drops learnt routes. And what is right already may be read-only.
///
/// # Errors
///
/// As [`read`].
pub fn ensure(key: &Key, value: &str) -> Result<Ensured, Error> {
    if read(key)? == value {
        return Ok(Ensured::Unchanged);
    }
    write(key, value)?;
    Ok(Ensured::Changed)
}

/// Reads a sysctl of a namespace.
///
/// # Errors
///
/// As [`read`], and when the namespace cannot be entered.
pub fn read_in(netns: &Netns, key: &Key) -> Result<String, Error> {
    netns.run(|| read(key))?
}

/// Writes sysctls of a namespace, in order, up to the first failure.
///
/// # Errors
///
/// As [`read`], and when the namespace cannot be entered.
pub fn write_in(netns: &Netns, settings: &[(Key, &str)]) -> Result<(), Error> {
    netns.run(|| settings.iter().try_for_each(|(key, value)| write(key, value)))?
}

fn path(key: &Key) -> impl AsRef<Path> {
    Path::new("/proc/sys").join(&key.0)
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte == b'_' || byte.is_ascii_alphanumeric())
}

fn invalid(key: &str, why: &'static str) -> Error {
    Error::InvalidSysctl { key: key.to_owned(), why }
}

#[cfg(test)]
#[path = "tests/sysctl.rs"]
mod tests;

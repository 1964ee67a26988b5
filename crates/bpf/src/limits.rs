//! Resource limits that a loader meets.

use nix::errno::Errno;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

use crate::error::{Error, Result};

/// Raises the number of files this process may have open to the most it is allowed: each map,
/// program and link is one.
#[doc(alias = "RLIMIT_NOFILE")]
pub fn raise_open_files() -> Result<()> {
    let error = |errno: Errno| Error::Limit { limit: "open files", source: errno.into() };
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(error)?;
    if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(error) } else { Ok(()) }
}

/// Lifts the limit of locked memory, against which kernels before 5.11 count maps.
///
/// Without `CAP_SYS_RESOURCE` the kernel says `EPERM`. That alone is passed over: where the limit
/// matters after all, making a map fails with the same error and says which map.
#[doc(alias = "RLIMIT_MEMLOCK")]
pub fn raise_memlock() -> Result<()> {
    let error = |errno: Errno| Error::Limit { limit: "locked memory", source: errno.into() };
    let (soft, _) = getrlimit(Resource::RLIMIT_MEMLOCK).map_err(error)?;
    if soft == RLIM_INFINITY {
        return Ok(());
    }
    match setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
        Ok(()) | Err(Errno::EPERM) => Ok(()),
        Err(errno) => Err(error(errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_raised_or_left() {
        raise_memlock().unwrap();
        raise_open_files().unwrap();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(soft, hard);
    }
}

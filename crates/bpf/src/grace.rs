//! Waiting for programs to finish.
#![expect(unsafe_code, reason = "a system call that has no safe wrapper")]

use std::io;
use std::os::fd::AsFd;

use crate::layout::MapType;
use crate::spec::MapSpec;
use crate::sys::{self, MapFd};

/// `MEMBARRIER_CMD_GLOBAL` of linux/membarrier.h.
const GLOBAL: libc::c_int = 1;

/// Waits until no program that ran when this was called is still running: what was removed from a
/// map before is seen by none any more. Takes milliseconds. Sleepable programs are not waited for.
///
/// Programs run within an RCU read section, and `membarrier` waits for a grace period
/// (`synchronize_rcu` in kernel/sched/membarrier.c). A kernel started with `nohz_full` refuses
/// that; there a map of maps is written to, after which the kernel waits likewise
/// (`maybe_wait_bpf_programs` in kernel/bpf/syscall.c), which needs `CAP_BPF`.
///
/// Minimum kernel: 4.3, with `nohz_full` 4.20.
#[doc(alias("membarrier", "synchronize_rcu", "RCU"))]
pub fn grace_period() -> io::Result<()> {
    match by_membarrier() {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) => {
            by_map_of_maps()
        }
        other => other,
    }
}

fn by_membarrier() -> io::Result<()> {
    // SAFETY: the call takes three numbers and touches no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn by_map_of_maps() -> io::Result<()> {
    let spec = |kind| MapSpec::new("grace", kind).entry::<u32, u32>().max_entries(1);
    let inner = sys::map_create(spec(MapType::Array).create_attr())?;
    let number = sys::raw(inner.as_fd());
    let mut outer = spec(MapType::ArrayOfMaps).create_attr();
    outer.inner_map_fd = number.cast_unsigned();
    let (outer, _) = MapFd::new(sys::map_create(outer)?)?;
    outer.update(&0_u32.to_ne_bytes(), &number.to_ne_bytes(), sys::BPF_ANY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grace_period_passes() {
        grace_period().unwrap();
        by_membarrier().unwrap();
    }

    #[test]
    #[ignore = "needs root: makes maps"]
    fn a_grace_period_passes_without_membarrier() {
        by_map_of_maps().unwrap();
    }
}

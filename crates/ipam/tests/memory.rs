//! How much memory leases take, by an allocator that counts: every byte asked for, rounded up as
//! glibc rounds it.

#![expect(clippy::unwrap_used, reason = "functions that tests share panic as tests do")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use podwire_ipam::{Allocator, Owner, PoolConfig, Request, Time};

/// Most bytes of a lease.
const MOST: usize = 256;

struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static COUNTING: Counting = Counting;

/// A block of glibc has a header of 8 bytes, comes in steps of 16, and has 32 at least.
fn rounded(size: usize) -> usize {
    (size + 8).next_multiple_of(16).max(32)
}

// SAFETY: every call goes to the system's allocator as it came; the count is no part of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(rounded(layout.size()), Ordering::Relaxed);
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(rounded(layout.size()), Ordering::Relaxed);
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.dealloc(block, layout) }
    }
}

/// A pool with this many confirmed leases of one address, and the bytes that it takes.
fn filled(cidr: &str, leases: usize) -> (Allocator, usize) {
    let before = IN_USE.load(Ordering::Relaxed);
    let config = PoolConfig::new("memory", vec![cidr.parse().unwrap()]);
    let mut allocator = Allocator::new(&config).unwrap();
    for number in 0..leases {
        // As Kubernetes and containerd name them.
        let owner = Owner::new(&format!("{number:064x}"), "eth0")
            .with_pod(&format!("namespace/deployment-7d9f8b6c5d-{number:05}"));
        allocator.allocate(&owner, &Request::default(), Time::default()).unwrap();
        allocator.confirm(&owner).unwrap();
    }
    assert_eq!(allocator.lease_count(), leases);
    (allocator, IN_USE.load(Ordering::Relaxed) - before)
}

/// All in one test: the count is the process's.
#[test]
fn memory_grows_with_leases_alone() {
    // All of the /12 but its network and broadcast address.
    for (cidr, leases) in [("10.0.0.0/12", 1_048_574), ("10.0.0.0/12", 600_000)] {
        let (allocator, bytes) = filled(cidr, leases);
        println!("{leases} leases of {cidr}: {} bytes each", bytes / leases);
        assert!(bytes / leases <= MOST, "{leases} leases of {cidr}: {bytes} bytes");
        drop(allocator);
    }
    // However large the pool is.
    let leases = 1000;
    let sizes = ["fd00::/118", "fd00::/64", "fd00::/16"].map(|cidr| filled(cidr, leases).1);
    println!("{leases} leases of a /118, a /64 and a /16 of IPv6: {sizes:?} bytes");
    assert!(sizes.iter().all(|bytes| bytes / leases <= MOST), "{sizes:?}");
    let (least, most) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
    assert!(most - least < 1000, "{sizes:?}");
    let (_, empty) = filled("fd00::/64", 0);
    println!("no lease of a /64 of IPv6: {empty} bytes");
    assert!(empty < 4096, "{empty}");
}

//! The system calls that make and enter namespaces.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    panic,
    path::{Path, PathBuf},
    thread,
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    sys::{
        socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket},
        statfs::{OVERLAYFS_SUPER_MAGIC, statfs},
    },
};

use crate::{Error, Result};

/// Runs `f` in a thread of its own, which ends with it: what it does to its namespaces touches no
/// other thread. A panic is passed on.
pub(crate) fn in_thread<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| match scope.spawn(f).join() {
        Ok(value) => value,
        Err(panic) => panic::resume_unwind(panic),
    })
}

/// Takes the calling thread into the given namespaces, for good, and keeps its working folder.
pub(crate) fn enter(mnt: BorrowedFd<'_>, net: BorrowedFd<'_>) -> io::Result<()> {
    let folder = std::env::current_dir();
    // A thread that shares its root and working folder with others may not change mount namespace.
    unshare(CloneFlags::CLONE_FS)?;
    enter_alone(mnt, net)?;
    if let Ok(folder) = folder {
        // It may be gone, or hidden by a mount of the host.
        let _ = std::env::set_current_dir(folder);
    }
    Ok(())
}

/// As [`enter`], for a process that shares nothing; allocates nothing, so it may run after a fork.
pub(crate) fn enter_alone(mnt: BorrowedFd<'_>, net: BorrowedFd<'_>) -> io::Result<()> {
    setns(mnt, CloneFlags::CLONE_NEWNS)?;
    setns(net, CloneFlags::CLONE_NEWNET)?;
    Ok(())
}

/// Gives the calling thread new network and mount namespaces, and the mounts of a host.
pub(crate) fn become_host() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
        .map_err(|e| Error::namespace("unshare network and mount namespaces", e))?;
    bring_loopback_up().map_err(|e| Error::namespace("bring lo up", e))?;
    mount_at(None, "/", None, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None, "private")?;

    // What the machine has under /etc and /var/lib stays readable, what is written there is ours.
    // The overlays keep their upper layers in a tmpfs that the next mount of /run hides.
    mount_tmpfs("/run", "0755")?;
    for lower in ["/etc", "/var/lib"] {
        let layer = PathBuf::from("/run").join(lower.trim_start_matches('/').replace('/', "-"));
        let (upper, work) = (layer.join("upper"), layer.join("work"));
        make_folder(&upper)?;
        make_folder(&work)?;
        let options =
            format!("lowerdir={lower},upperdir={},workdir={}", upper.display(), work.display());
        mount_at(
            Some("overlay"),
            lower,
            Some("overlay"),
            MsFlags::empty(),
            Some(&options),
            "overlay",
        )?;
    }
    mount_tmpfs("/run", "0755")?;
    for folder in ["/etc/cni", "/var/lib/cni", "/var/lib/podwire"] {
        empty_in_overlay(Path::new(folder))?;
    }
    // A real tmpfs: an overlay cannot be the upper layer of podman's.
    make_folder(Path::new("/var/lib/containers"))?;
    mount_tmpfs("/var/lib/containers", "0755")?;
    for folder in ["/run/netns", "/run/lock", "/etc/cni/net.d"] {
        make_folder(Path::new(folder))?;
    }
    mount_at(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), Some("mode=0700"), "bpf")
}

/// Makes a network namespace and pins it at `path`, in the calling thread's mount namespace. The
/// calling thread is in the new namespace afterwards.
pub(crate) fn create_pinned(path: &Path) -> io::Result<OwnedFd> {
    File::create_new(path)?;
    let pin = || -> io::Result<OwnedFd> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        bring_loopback_up()?;
        let own = "/proc/thread-self/ns/net";
        mount(Some(own), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        Ok(File::open(own)?.into())
    };
    pin().inspect_err(|_| {
        // The first failure is the one to tell.
        let _ = fs::remove_file(path);
    })
}

pub(crate) fn own(kind: &str) -> io::Result<OwnedFd> {
    Ok(File::open(format!("/proc/thread-self/ns/{kind}"))?.into())
}

/// The number that names a namespace, as in `net:[4026531840]`.
pub(crate) fn inode(namespace: impl AsFd) -> io::Result<u64> {
    Ok(nix::sys::stat::fstat(namespace)?.st_ino)
}

/// Sets `lo` up with one `RTM_NEWLINK` by index, which is 1 in every namespace.
fn bring_loopback_up() -> io::Result<()> {
    const RTM_NEWLINK: u16 = 16;
    const NLM_F_REQUEST_ACK: u16 = 1 | 4;
    const IFF_UP: u32 = 1;
    let mut request = Vec::with_capacity(32);
    request.extend(32u32.to_ne_bytes());
    request.extend(RTM_NEWLINK.to_ne_bytes());
    request.extend(NLM_F_REQUEST_ACK.to_ne_bytes());
    request.extend([0; 8]); // sequence, port
    request.extend([0; 4]); // family, padding, device type
    request.extend(1i32.to_ne_bytes());
    request.extend(IFF_UP.to_ne_bytes());
    request.extend(IFF_UP.to_ne_bytes()); // which flags to change

    let socket: OwnedFd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    let mut socket = File::from(socket);
    socket.write_all(&request)?;
    let mut answer = [0; 512];
    let read = socket.read(&mut answer)?;
    let code = answer[..read].get(16..20).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes);
    match code {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::Error::other("the kernel's answer is cut short")),
    }
}

/// Makes a folder that is empty, and can be removed since nothing is mounted there.
fn empty_in_overlay(path: &Path) -> Result<()> {
    let empty = || -> io::Result<()> {
        let parent = path.parent().unwrap_or(path);
        // What is removed in an overlay stays where it really is; anywhere else it would be gone.
        if statfs(parent)?.filesystem_type() != OVERLAYFS_SUPER_MAGIC {
            return Err(io::Error::other("the overlay is not there"));
        }
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => fs::create_dir(path),
        }
    };
    empty().map_err(|source| Error::Mount { kind: "empty folder", target: path.into(), source })
}

fn mount_tmpfs(target: &str, mode: &str) -> Result<()> {
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
    // podman's storage needs device nodes and setuid files below /var/lib/containers.
    let flags = if target == "/var/lib/containers" { MsFlags::empty() } else { flags };
    mount_at(Some("tmpfs"), target, Some("tmpfs"), flags, Some(&format!("mode={mode}")), "tmpfs")
}

fn mount_at(
    source: Option<&str>,
    target: &str,
    kind: Option<&str>,
    flags: MsFlags,
    options: Option<&str>,
    name: &'static str,
) -> Result<()> {
    mount(source, target, kind, flags, options).map_err(|e| Error::Mount {
        kind: name,
        target: target.into(),
        source: e.into(),
    })
}

fn make_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|source| Error::Mount {
        kind: "folder",
        target: path.into(),
        source,
    })
}

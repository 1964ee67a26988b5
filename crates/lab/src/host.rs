use std::{
    ffi::OsStr,
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use nix::mount::{MntFlags, umount2};

use crate::{
    Error, Inventory, Result,
    keeper::{self, Keeper},
    namespace,
};

/// Where pods' network namespaces are pinned.
const NETNS_FOLDER: &str = "/run/netns";

/// A node: a network namespace and a mount namespace of its own.
///
/// In it, `lo` is up, `/run` is an empty tmpfs, `/sys/fs/bpf` a fresh bpffs; `/etc/cni`,
/// `/var/lib/cni`, `/var/lib/containers` and `/var/lib/podwire` are empty folders; the rest of `/etc` and
/// `/var/lib` is the machine's to read, and what is written there stays in the host. All other
/// folders are the machine's, `/sys/class/net` and the cgroups among them.
///
/// Cloning gives another handle. When the last handle, [`Pod`] and [`Command`] of a host is
/// dropped, or when the process dies, every process in the host or in one of its pods is killed
/// and the namespaces are gone.
///
/// Minimum kernel version: 5.9.
#[derive(Clone, Debug)]
pub struct Host {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    mnt: OwnedFd,
    net: OwnedFd,
    // Waits for the host's processes to end; the namespaces go afterwards.
    _keeper: Keeper,
}

impl Host {
    /// Makes a node.
    ///
    /// # Errors
    /// [`Error::Privileges`] without root; [`Error::Mount`] where the kernel lacks overlayfs or bpffs.
    pub fn new() -> Result<Self> {
        namespace::in_thread(|| {
            let operation = "list the machine's namespaces";
            let spared =
                keeper::namespaces_of_others().map_err(|e| Error::namespace(operation, e))?;
            namespace::become_host()?;
            let open =
                |kind| namespace::own(kind).map_err(|e| Error::namespace("open namespace", e));
            let (mnt, net) = (open("mnt")?, open("net")?);
            let keeper = Keeper::start(&spared).map_err(|e| Error::namespace("start keeper", e))?;
            Ok(Self { inner: Arc::new(Inner { mnt, net, _keeper: keeper }) })
        })
    }

    /// Runs `f` in the host, in a thread that ends with it. Threads that `f` starts stay in the host.
    ///
    /// # Panics
    /// When `f` panics, or when the kernel does not let the thread in (privileges were dropped).
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        self.inner.run(self.inner.net.as_fd(), f)
    }

    /// A command that will be started in the host. It is killed with the host, along with all it
    /// has started by then.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        Inner::command(&self.inner, None, program.as_ref())
    }

    /// Makes a network namespace for a pod, with `lo` up, and pins it at `/run/netns/<name>` of
    /// this host. The path is valid inside the host only.
    ///
    /// # Errors
    /// [`Error::Pod`], when the name is taken or contains `/`, among others.
    pub fn add_pod_netns(&self, name: &str) -> Result<PathBuf> {
        Ok(self.add_pod(name)?.path)
    }

    /// As [`add_pod_netns`](Self::add_pod_netns), with a handle to run things in the pod.
    ///
    /// # Errors
    /// As [`add_pod_netns`](Self::add_pod_netns).
    pub fn add_pod(&self, name: &str) -> Result<Pod> {
        let path = pod_path(name)?;
        let net = self
            .run(|| namespace::create_pinned(&path))
            .map_err(|e| pod_error("create", name, e))?;
        Ok(self.pod_of(name, path, net))
    }

    /// Opens a pod that stands already, such as one that a container runtime made.
    ///
    /// # Errors
    /// [`Error::Pod`] when there is none.
    pub fn pod(&self, name: &str) -> Result<Pod> {
        let path = pod_path(name)?;
        let net = self.run(|| fs::File::open(&path)).map_err(|e| pod_error("open", name, e))?;
        Ok(self.pod_of(name, path, net.into()))
    }

    /// Whether a pod may have this name: a file name that does not begin with a dot.
    ///
    /// # Errors
    /// [`Error::Pod`] when it may not.
    pub fn check_pod_name(name: &str) -> Result<()> {
        pod_path(name).map(drop)
    }

    /// Unpins a pod's namespace and deletes its file. The namespace itself ends with the last
    /// process, thread and handle in it.
    ///
    /// # Errors
    /// [`Error::Pod`] when there is none.
    pub fn remove_pod_netns(&self, name: &str) -> Result<()> {
        let path = pod_path(name)?;
        self.run(|| {
            umount2(&path, MntFlags::MNT_DETACH)?;
            fs::remove_file(&path)
        })
        .map_err(|e| pod_error("remove", name, e))
    }

    /// Names of all pinned network namespaces, sorted.
    ///
    /// # Errors
    /// [`Error::Pod`] when their folder cannot be read.
    pub fn pod_names(&self) -> Result<Vec<String>> {
        let list = || -> io::Result<Vec<String>> {
            let mut names = Vec::new();
            for entry in fs::read_dir(NETNS_FOLDER)? {
                names.push(entry?.file_name().to_string_lossy().into_owned());
            }
            names.sort();
            Ok(names)
        };
        self.run(list).map_err(|e| pod_error("list", "*", e))
    }

    /// What stands in the host: links, routes, neighbours, pinned namespaces and programs, mounts.
    ///
    /// # Errors
    /// [`Error::Namespace`] when one of them cannot be listed.
    pub fn inventory(&self) -> Result<Inventory> {
        self.run(Inventory::here)
    }

    /// The host's network namespace.
    #[must_use]
    pub fn netns(&self) -> BorrowedFd<'_> {
        self.inner.net.as_fd()
    }

    fn pod_of(&self, name: &str, path: PathBuf, net: OwnedFd) -> Pod {
        Pod { name: name.to_owned(), path, net: Arc::new(net), host: self.clone() }
    }
}

impl Inner {
    fn run<T: Send>(&self, net: BorrowedFd<'_>, f: impl FnOnce() -> T + Send) -> T {
        namespace::in_thread(|| {
            if let Err(error) = namespace::enter(self.mnt.as_fd(), net) {
                panic!("enter the lab host's namespaces: {error}");
            }
            f()
        })
    }

    fn command(this: &Arc<Self>, net: Option<Arc<OwnedFd>>, program: &OsStr) -> Command {
        let mut command = Command::new(program);
        let inner = Arc::clone(this);
        let enter = move || {
            let net = net.as_deref().unwrap_or(&inner.net);
            let mut folder = [0; 4096];
            // SAFETY: the buffer is as long as said.
            let known = !unsafe { libc::getcwd(folder.as_mut_ptr(), folder.len()) }.is_null();
            namespace::enter_alone(inner.mnt.as_fd(), net.as_fd())?;
            if known {
                // Entering a mount namespace leads to its root; a folder hidden there stays so.
                // SAFETY: getcwd ended the path with zero.
                unsafe { libc::chdir(folder.as_ptr()) };
            }
            Ok(())
        };
        // SAFETY: setns, getcwd and chdir are system calls; nothing is allocated or locked.
        unsafe { command.pre_exec(enter) };
        command
    }
}

/// A pod: a network namespace of its own beside its host's, with the host's mounts.
///
/// Dropping it leaves the namespace pinned; [`Host::remove_pod_netns`] or the host's end removes it.
#[derive(Clone, Debug)]
pub struct Pod {
    name: String,
    path: PathBuf,
    net: Arc<OwnedFd>,
    host: Host,
}

impl Pod {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is pinned, inside the host.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its host.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its network namespace.
    #[must_use]
    pub fn netns(&self) -> BorrowedFd<'_> {
        self.net.as_fd()
    }

    /// Runs `f` in the pod, as [`Host::run`] does in the host.
    ///
    /// # Panics
    /// As [`Host::run`].
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        self.host.inner.run(self.net.as_fd(), f)
    }

    /// A command that will be started in the pod, as [`Host::command`] in the host.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        Inner::command(&self.host.inner, Some(Arc::clone(&self.net)), program.as_ref())
    }

    /// The namespace's number, as in `net:[4026532281]`.
    ///
    /// # Errors
    /// [`Error::Pod`] when the kernel refuses to tell.
    pub fn inode(&self) -> Result<u64> {
        namespace::inode(self.netns()).map_err(|e| pod_error("examine", &self.name, e))
    }
}

fn pod_path(name: &str) -> Result<PathBuf> {
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        let source = io::Error::from(io::ErrorKind::InvalidInput);
        return Err(pod_error("name", name, source));
    }
    Ok(Path::new(NETNS_FOLDER).join(name))
}

fn pod_error(operation: &'static str, name: &str, source: io::Error) -> Error {
    Error::Pod { operation, name: name.to_owned(), source }
}

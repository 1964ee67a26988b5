use super::*;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

#[test]
fn what_is_no_namespace_is_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    let error = Netns::open(&missing).unwrap_err();
    assert!(error.is_not_found() && !error.is_not_a_netns(), "{error}");

    let empty = folder.path().join("empty");
    fs::write(&empty, "").unwrap();
    let full = folder.path().join("full");
    fs::write(&full, "text").unwrap();
    let socket = folder.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    for (path, what) in [
        (empty.as_path(), "empty file"),
        (full.as_path(), "it is a file"),
        (folder.path(), "folder"),
        (socket.as_path(), "socket"),
        (Path::new("/dev/null"), "device"),
        (Path::new("/proc/self/ns/mnt"), "another kind"),
        (&full.join("below"), "through something"),
    ] {
        let error = Netns::open(path).unwrap_err();
        assert!(error.is_not_a_netns() && !error.is_not_found(), "{path:?}: {error}");
        assert!(error.to_string().contains(what), "{path:?}: {error}");
    }
}

#[test]
fn a_pipe_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipe");
    let c_path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: the path ends in NUL and lives until the call returns.
    assert_eq!(unsafe { libc::mkfifo(c_path.as_ptr(), 0o600) }, 0);
    assert!(Netns::open(&path).unwrap_err().is_not_a_netns());
}

#[test]
fn the_current_namespace_is_the_threads_own() {
    let here = Netns::current().unwrap();
    let link = fs::read_link("/proc/thread-self/ns/net").unwrap();
    assert_eq!(link.to_str().unwrap(), format!("net:[{}]", here.inode().inode));
    let again = Netns::from_fd(here.fd.try_clone().unwrap()).unwrap();
    assert_eq!(again.inode(), here.inode());
}

#[test]
fn a_descriptor_that_is_no_namespace_is_refused() {
    let null = File::open("/dev/null").unwrap();
    assert!(Netns::from_fd(null.into()).unwrap_err().is_not_a_netns());
}

#[test]
#[ignore = "needs root: makes and enters network namespaces"]
fn work_runs_inside_and_the_caller_stays_outside() {
    let here = Netns::current().unwrap();
    let there = Netns::create().unwrap();
    assert_ne!(there.inode(), here.inode());
    let inside = there.run(|| Netns::current().unwrap().inode()).unwrap();
    assert_eq!(inside, there.inode());
    assert_eq!(Netns::current().unwrap().inode(), here.inode());

    let links = there.netlink().unwrap().links().unwrap();
    assert_eq!(links.len(), 1, "{links:?}");
    assert_eq!(links[0].name.to_string(), "lo");
    assert_eq!(Netns::current().unwrap().inode(), here.inode());
}

#[test]
#[ignore = "needs root: makes and enters network namespaces"]
fn a_panic_inside_goes_on_outside() {
    let there = Netns::create().unwrap();
    let panic = std::panic::catch_unwind(|| there.run(|| panic!("seen inside"))).unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"seen inside"));
}

#[test]
#[ignore = "needs root: makes and enters network namespaces"]
fn no_thread_stays_behind() {
    let there = Netns::create().unwrap();
    let mut inside = Vec::new();
    for _ in 0..8 {
        inside.push(there.netlink().unwrap());
        there.run(|| ()).unwrap();
    }
    // No thread of this process is in there, whatever threads other tests have. The kernel wakes who joins a thread
    // before it takes the thread out of its namespaces, so the last one may be seen for a moment.
    let is_inside = |task: io::Result<fs::DirEntry>| {
        let path = task.unwrap().path().join("ns/net");
        Netns::open(path).is_ok_and(|netns| netns.inode() == there.inode())
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    while fs::read_dir("/proc/self/task").unwrap().any(is_inside) {
        assert!(Instant::now() < deadline, "a thread is still inside");
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(inside[0].links().unwrap().len(), 1);
}

#[test]
#[ignore = "needs root: pins network namespaces in a mount namespace of its own"]
fn pins_come_and_go() {
    in_private_mounts(|folder| {
        let path = folder.join("pod");
        let made = Netns::create_pinned(&path).unwrap();
        assert_eq!(Netns::open(&path).unwrap().inode(), made.inode());

        let again = Netns::create_pinned(&path).unwrap_err();
        assert!(again.is_exists(), "{again}");
        assert_eq!(Netns::open(&path).unwrap().inode(), made.inode());

        drop(made);
        assert_eq!(Netns::open(&path).unwrap().netlink().unwrap().links().unwrap().len(), 1);

        Netns::remove_pinned(&path).unwrap();
        assert!(!path.exists());
        assert!(Netns::remove_pinned(&path).unwrap_err().is_not_found());

        // A pin whose mount is gone is an empty file; that goes. What is no pin stays.
        fs::write(&path, "").unwrap();
        Netns::remove_pinned(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        assert!(Netns::remove_pinned(&path).unwrap_err().is_not_a_netns());
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");

        let nowhere = folder.join("no/such/folder");
        assert!(matches!(Netns::create_pinned(nowhere), Err(Error::Pin { .. })));
    });
}

/// Mounts made inside end with the thread.
fn in_private_mounts(work: impl FnOnce(&Path) + Send) {
    let folder = tempfile::tempdir().unwrap();
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            // SAFETY: takes no pointers; the thread ends with this closure.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS | libc::CLONE_FS) }, 0);
            let none = std::ptr::null();
            let flags = libc::MS_REC | libc::MS_PRIVATE;
            // SAFETY: the path is a string constant with NUL; the rest may be null.
            let private = unsafe { libc::mount(none, c"/".as_ptr(), none, flags, none.cast()) };
            assert_eq!(private, 0);
            work(folder.path());
        });
        if let Err(panic) = inside.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

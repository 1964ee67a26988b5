use std::{fs, os::unix::fs::FileExt as _, path::Path};

use nix::{errno::Errno, libc, unistd::Pid};

/// A system call that changes something outside of its process, or asks somebody there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effect {
    /// What it is, to whom.
    pub name: String,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A change by netlink.
    Netlink,
    /// A question by netlink.
    Question,
    /// To the other end of the agent's socket.
    Message,
    /// The result, on standard output.
    Answer,
    /// A change by `bpf(2)`.
    Bpf,
    File,
    /// Another process is started.
    Start,
    /// And has ended.
    End,
    /// A socket, a connection, a namespace: nothing that is seen by others.
    Preparation,
}

impl Effect {
    /// Whether anybody outside of the process sees that it has happened.
    pub fn is_visible(&self) -> bool {
        !matches!(self.kind, Kind::Question | Kind::Preparation)
    }

    /// An error that this call may well end with.
    pub fn errno(&self) -> Errno {
        match self.kind {
            Kind::Netlink | Kind::Question => Errno::ENOBUFS,
            Kind::Message | Kind::Answer => Errno::EPIPE,
            Kind::Bpf => Errno::ENOMEM,
            Kind::File | Kind::End => Errno::EIO,
            Kind::Start => Errno::EAGAIN,
            Kind::Preparation => Errno::ENOMEM,
        }
    }

    /// The call that a thread is about to do.
    pub(super) fn of(
        thread: Pid,
        registers: &libc::user_regs_struct,
        answers: Option<&Path>,
    ) -> Option<Self> {
        let memory = Memory(thread);
        let [first, second, third] = [registers.rdi, registers.rsi, registers.rdx];
        let named = |kind, name: String| Some(Self { name, kind });
        let file = |verb: &str, path: String| named(Kind::File, format!("{verb} {}", short(&path)));
        match registers.orig_rax.cast_signed() {
            libc::SYS_write | libc::SYS_sendto => {
                of_bytes(&target(thread, first), answers, &memory.bytes(second, third))
            }
            libc::SYS_writev => {
                of_bytes(&target(thread, first), answers, &memory.gathered(second, third))
            }
            libc::SYS_sendmsg => {
                let parts = memory.word(second + 16);
                of_bytes(
                    &target(thread, first),
                    answers,
                    &memory.gathered(parts, memory.word(second + 24)),
                )
            }
            libc::SYS_pwrite64 => file("write", target(thread, first)),
            libc::SYS_fsync => file("fsync", target(thread, first)),
            libc::SYS_fdatasync => file("fdatasync", target(thread, first)),
            libc::SYS_ftruncate => file("ftruncate", target(thread, first)),
            libc::SYS_mkdir => file("mkdir", memory.text(first)),
            libc::SYS_unlink => file("unlink", memory.text(first)),
            libc::SYS_rename => file("rename to", memory.text(second)),
            libc::SYS_mkdirat => file("mkdir", memory.text(second)),
            libc::SYS_unlinkat => file("unlink", memory.text(second)),
            libc::SYS_renameat | libc::SYS_renameat2 => {
                file("rename to", memory.text(registers.r10))
            }
            libc::SYS_openat if third.cast_signed() & i64::from(libc::O_CREAT) != 0 => {
                file("create", memory.text(second))
            }
            libc::SYS_bpf => of_bpf(first),
            libc::SYS_clone | libc::SYS_clone3 | libc::SYS_vfork | libc::SYS_fork => {
                let is_clone3 = registers.orig_rax.cast_signed() == libc::SYS_clone3;
                let flags = if is_clone3 { memory.word(first) } else { first };
                let is_thread = flags & u64::from(libc::CLONE_THREAD.cast_unsigned()) != 0;
                if is_thread { None } else { named(Kind::Start, "start of the IPAM plugin".into()) }
            }
            libc::SYS_wait4 | libc::SYS_waitid => {
                named(Kind::End, "wait for the IPAM plugin".into())
            }
            libc::SYS_connect => named(Kind::Preparation, "connect".into()),
            libc::SYS_socket => named(Kind::Preparation, "socket".into()),
            libc::SYS_setns => named(Kind::Preparation, "setns".into()),
            _ => None,
        }
    }
}

fn of_bytes(target: &str, answers: Option<&Path>, bytes: &[u8]) -> Option<Effect> {
    let named = |kind, name: String| Some(Effect { name, kind });
    if target.starts_with("pipe:") {
        let is_own = Some(Path::new(target)) == answers;
        let to_plugin = || named(Kind::Message, "configuration to the IPAM plugin".into());
        return if is_own { named(Kind::Answer, "stdout".into()) } else { to_plugin() };
    }
    if let Some(key) = target.strip_prefix("/proc/sys/") {
        return named(Kind::File, format!("sysctl {}", key.replace('/', ".")));
    }
    if target.starts_with('/') && !target.starts_with("/memfd:") && !target.starts_with("/dev/") {
        return named(Kind::File, format!("write {}", short(target)));
    }
    if !target.starts_with("socket:") {
        // A log, or a thread that wakes another.
        return None;
    }
    if let Some(names) = netlink_messages(bytes) {
        let asks = names.iter().all(|name| name.starts_with("RTM_GET"));
        let kind = if asks { Kind::Question } else { Kind::Netlink };
        return named(kind, format!("netlink {}", names.join("+")));
    }
    named(Kind::Message, http(bytes))
}

/// The types of the messages of a send, each once.
fn netlink_messages(mut bytes: &[u8]) -> Option<Vec<String>> {
    let mut names: Vec<String> = Vec::new();
    while let Some((header, _)) = bytes.split_first_chunk::<16>() {
        let length = u32::from_ne_bytes(header[..4].try_into().unwrap()) as usize;
        let number = u16::from_ne_bytes([header[4], header[5]]);
        if !(16..=bytes.len()).contains(&length) || !(16..128).contains(&number) {
            return None;
        }
        let act = ["NEW", "DEL", "GET", "SET"][usize::from(number % 4)];
        let objects = ["LINK", "ADDR", "ROUTE", "NEIGH", "RULE", "QDISC", "TCLASS", "TFILTER"];
        let object = objects.get(usize::from(number / 4 - 4));
        let name = object.map_or_else(|| number.to_string(), |object| format!("RTM_{act}{object}"));
        if !names.contains(&name) {
            names.push(name);
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    (!names.is_empty()).then_some(names)
}

fn http(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let words: Vec<&str> = text.split_ascii_whitespace().take(2).collect();
    match words[..] {
        ["HTTP/1.1", status] => format!("answer {status}"),
        [method @ ("GET" | "PUT" | "POST" | "DELETE"), path] => {
            format!("{method} {}", path.split('/').take(3).collect::<Vec<_>>().join("/"))
        }
        _ => "a message's body".into(),
    }
}

fn of_bpf(command: u64) -> Option<Effect> {
    let (kind, name) = match command {
        0 => (Kind::Preparation, "MAP_CREATE"),
        1 => (Kind::Question, "MAP_LOOKUP_ELEM"),
        2 => (Kind::Bpf, "MAP_UPDATE_ELEM"),
        3 => (Kind::Bpf, "MAP_DELETE_ELEM"),
        4 => (Kind::Question, "MAP_GET_NEXT_KEY"),
        5 => (Kind::Preparation, "PROG_LOAD"),
        6 => (Kind::Bpf, "OBJ_PIN"),
        7 => (Kind::Question, "OBJ_GET"),
        8 => (Kind::Bpf, "PROG_ATTACH"),
        9 => (Kind::Bpf, "PROG_DETACH"),
        26 => (Kind::Bpf, "MAP_UPDATE_BATCH"),
        27 => (Kind::Bpf, "MAP_DELETE_BATCH"),
        28 => (Kind::Bpf, "LINK_CREATE"),
        29 => (Kind::Bpf, "LINK_UPDATE"),
        34 => (Kind::Bpf, "LINK_DETACH"),
        _ => return None,
    };
    Some(Effect { name: format!("bpf {name}"), kind })
}

/// What a descriptor is of.
fn target(thread: Pid, descriptor: u64) -> String {
    let link = fs::read_link(format!("/proc/{thread}/fd/{descriptor}"));
    link.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The last part of a path; a note's unfinished file has its writer's number in its name.
fn short(path: &str) -> &str {
    let name = path.rsplit('/').next().unwrap_or(path);
    match name.rsplit_once('.') {
        Some((note, _)) if note.starts_with(".pw") => note,
        _ => name,
    }
}

/// The memory of a stopped thread.
struct Memory(Pid);

impl Memory {
    /// At most a page; what cannot be read is nothing.
    fn bytes(&self, address: u64, length: u64) -> Vec<u8> {
        let mut bytes = vec![0; length.min(4096).try_into().unwrap_or_default()];
        let read = fs::File::open(format!("/proc/{}/mem", self.0))
            .and_then(|memory| memory.read_at(&mut bytes, address));
        bytes.truncate(read.unwrap_or_default());
        bytes
    }

    fn word(&self, address: u64) -> u64 {
        self.bytes(address, 8).try_into().map_or(0, u64::from_ne_bytes)
    }

    /// A string up to its zero, and no further than its page.
    fn text(&self, address: u64) -> String {
        let bytes = self.bytes(address, 4096 - address % 4096);
        let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(text).into_owned()
    }

    /// The parts of a scattered write.
    fn gathered(&self, parts: u64, count: u64) -> Vec<u8> {
        let part = |place| (parts + 16 * place, parts + 16 * place + 8);
        let all = (0..count.min(64)).map(part);
        all.flat_map(|(base, length)| self.bytes(self.word(base), self.word(length))).collect()
    }
}

//! Every bpf(2) call of the crate, each as a function whose arguments cannot be wrong in a way that
//! corrupts memory.
//!
//! The attribute structures are those of `include/uapi/linux/bpf.h`, one per command instead of
//! the header's union: the kernel takes the part it is given and reads the rest as zero.
#![expect(unsafe_code, reason = "bpf(2) takes addresses as integers")]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

pub(crate) const BPF_ANY: u64 = 0;
pub(crate) const BPF_NOEXIST: u64 = 1;
pub(crate) const BPF_EXIST: u64 = 2;

/// What the kernel answers where a map type has no such operation; libc has no name for it.
pub(crate) const ENOTSUPP: i32 = 524;

pub(crate) const PROG_TYPE_SCHED_CLS: u32 = 3;
pub(crate) const BPF_TCX_INGRESS: u32 = 46;
pub(crate) const BPF_TCX_EGRESS: u32 = 47;

const OBJECT_NAME_LEN: usize = 16;

#[derive(Clone, Copy)]
#[repr(u32)]
enum Command {
    MapCreate = 0,
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    MapNextKey = 4,
    ProgLoad = 5,
    ObjPin = 6,
    ObjGet = 7,
    ProgTestRun = 10,
    ProgFdById = 13,
    ObjInfo = 15,
    ProgQuery = 16,
    BtfLoad = 18,
    MapLookupAndDelete = 21,
    MapFreeze = 22,
    MapLookupBatch = 24,
    MapLookupAndDeleteBatch = 25,
    MapUpdateBatch = 26,
    MapDeleteBatch = 27,
    LinkCreate = 28,
    LinkUpdate = 29,
    LinkDetach = 34,
}

/// The one place that enters the kernel.
///
/// # Safety
///
/// Each address in `attr` must be valid for what `command` reads or writes there.
unsafe fn bpf<A: IntoBytes + FromBytes>(command: Command, attr: &mut A) -> io::Result<i32> {
    let bytes = attr.as_mut_bytes();
    // SAFETY: `bytes` is a valid attribute of its own length; the addresses in it are the caller's
    // promise.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command as libc::c_long, bytes.as_mut_ptr(), bytes.len())
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}

/// As [`bpf`], for the commands that answer with a new file descriptor (close-on-exec).
///
/// # Safety
///
/// As [`bpf`], and `command` returns a descriptor.
unsafe fn bpf_fd<A: IntoBytes + FromBytes>(command: Command, attr: &mut A) -> io::Result<OwnedFd> {
    // SAFETY: passed on to the caller.
    let fd = unsafe { bpf(command, attr) }?;
    // SAFETY: the kernel has just opened it for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn address<T>(slice: &[T]) -> u64 {
    if slice.is_empty() { 0 } else { slice.as_ptr() as u64 }
}

fn address_mut<T>(slice: &mut [T]) -> u64 {
    if slice.is_empty() { 0 } else { slice.as_mut_ptr() as u64 }
}

fn length(bytes: &[u8]) -> io::Result<u32> {
    u32::try_from(bytes.len()).map_err(io::Error::other)
}

/// The kernel keeps 15 bytes of a name and accepts letters, digits, `_` and `.` in it.
pub(crate) fn object_name(name: &str) -> [u8; OBJECT_NAME_LEN] {
    let mut field = [0; OBJECT_NAME_LEN];
    for (to, from) in field[..OBJECT_NAME_LEN - 1].iter_mut().zip(name.bytes()) {
        *to =
            if from.is_ascii_alphanumeric() || from == b'_' || from == b'.' { from } else { b'_' };
    }
    field
}

// ---- maps -------------------------------------------------------------------------------------

#[derive(Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct MapCreate {
    pub(crate) map_type: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) map_flags: u32,
    pub(crate) inner_map_fd: u32,
    pub(crate) numa_node: u32,
    pub(crate) map_name: [u8; OBJECT_NAME_LEN],
    pub(crate) map_ifindex: u32,
    pub(crate) btf_fd: u32,
    pub(crate) btf_key_type_id: u32,
    pub(crate) btf_value_type_id: u32,
    pub(crate) btf_vmlinux_value_type_id: u32,
    pub(crate) map_extra: u64,
}

pub(crate) fn map_create(mut attr: MapCreate) -> io::Result<OwnedFd> {
    // SAFETY: the command reads no address; descriptors that are not what they should be are
    // refused.
    unsafe { bpf_fd(Command::MapCreate, &mut attr) }
}

#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct MapElement {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct MapBatch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// A map's descriptor with the sizes that the kernel itself gave for it, so that no buffer handed
/// to the kernel can be too short.
#[derive(Debug)]
pub(crate) struct MapFd {
    fd: OwnedFd,
    key_size: usize,
    value_stride: usize,
}

/// How far a batch came, and what ended it.
#[derive(Debug)]
pub(crate) struct BatchOutcome {
    pub(crate) count: usize,
    pub(crate) result: io::Result<()>,
}

impl MapFd {
    pub(crate) fn new(fd: OwnedFd) -> io::Result<(Self, RawMapInfo)> {
        let info = map_info(fd.as_fd())?;
        let value_size = info.value_size as usize;
        let value_stride = if is_per_cpu(info.map_type) {
            value_size.next_multiple_of(8) * crate::cpu::possible()?
        } else {
            value_size
        };
        Ok((Self { fd, key_size: info.key_size as usize, value_stride }, info))
    }

    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        let Self { ref fd, key_size, value_stride } = *self;
        Ok(Self { fd: fd.try_clone()?, key_size, value_stride })
    }

    /// Bytes that user space sees of one value: for a per-CPU map, all of them.
    pub(crate) fn value_stride(&self) -> usize {
        self.value_stride
    }

    pub(crate) fn key_size(&self) -> usize {
        self.key_size
    }

    pub(crate) fn lookup(&self, key: &[u8], value: &mut [u8]) -> io::Result<()> {
        self.element(Command::MapLookup, key, address_mut(self.check_value(value)?), 0)
    }

    pub(crate) fn lookup_and_delete(&self, key: &[u8], value: &mut [u8]) -> io::Result<()> {
        self.element(Command::MapLookupAndDelete, key, address_mut(self.check_value(value)?), 0)
    }

    pub(crate) fn update(&self, key: &[u8], value: &[u8], flags: u64) -> io::Result<()> {
        check_length(value, self.value_stride)?;
        self.element(Command::MapUpdate, key, address(value), flags)
    }

    pub(crate) fn delete(&self, key: &[u8]) -> io::Result<()> {
        self.element(Command::MapDelete, key, 0, 0)
    }

    /// The key after `key` (the first for `None`) is written to `next`.
    pub(crate) fn next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> io::Result<()> {
        check_length(next, self.key_size)?;
        if let Some(key) = key {
            check_length(key, self.key_size)?;
        }
        let mut attr = MapElement {
            map_fd: number(self.fd.as_fd()),
            padding: 0,
            key: key.map_or(0, address),
            value: address_mut(next),
            flags: 0,
        };
        // SAFETY: both addresses hold `key_size` bytes, checked above.
        unsafe { bpf(Command::MapNextKey, &mut attr) }.map(drop)
    }

    /// Reads as many entries as the buffers hold. `cursor` is opaque: `started` says whether it
    /// holds a position.
    pub(crate) fn lookup_batch(
        &self,
        started: bool,
        cursor: &mut [u8],
        keys: &mut [u8],
        values: &mut [u8],
        then: Afterwards,
    ) -> io::Result<BatchOutcome> {
        // A hash table's cursor is a bucket number, the others' a key.
        check_length(cursor, self.key_size.max(4))?;
        let count = self.batch_count(keys, Some(values))?;
        let cursor = address_mut(cursor);
        let attr = MapBatch {
            in_batch: if started { cursor } else { 0 },
            out_batch: cursor,
            keys: address_mut(keys),
            values: address_mut(values),
            count,
            map_fd: number(self.fd.as_fd()),
            elem_flags: 0,
            flags: 0,
        };
        let command = match then {
            Afterwards::Keep => Command::MapLookupBatch,
            Afterwards::Delete => Command::MapLookupAndDeleteBatch,
        };
        Ok(batch(command, attr))
    }

    pub(crate) fn update_batch(&self, keys: &[u8], values: &[u8]) -> io::Result<BatchOutcome> {
        let count = self.batch_count(keys, Some(values))?;
        let attr = self.batch_attr(address(keys), address(values), count);
        Ok(batch(Command::MapUpdateBatch, attr))
    }

    pub(crate) fn delete_batch(&self, keys: &[u8]) -> io::Result<BatchOutcome> {
        let count = self.batch_count(keys, None)?;
        Ok(batch(Command::MapDeleteBatch, self.batch_attr(address(keys), 0, count)))
    }

    pub(crate) fn freeze(&self) -> io::Result<()> {
        let mut attr = self.batchless();
        // SAFETY: the command reads no address.
        unsafe { bpf(Command::MapFreeze, &mut attr) }.map(drop)
    }

    fn batchless(&self) -> MapElement {
        MapElement { map_fd: number(self.fd.as_fd()), padding: 0, key: 0, value: 0, flags: 0 }
    }

    fn element(&self, command: Command, key: &[u8], value: u64, flags: u64) -> io::Result<()> {
        check_length(key, self.key_size)?;
        let mut attr = MapElement { key: address(key), value, flags, ..self.batchless() };
        // SAFETY: the key has `key_size` bytes; `value` is zero or holds `value_stride` bytes, both
        // checked against the kernel's own sizes.
        unsafe { bpf(command, &mut attr) }.map(drop)
    }

    fn check_value<'v>(&self, value: &'v mut [u8]) -> io::Result<&'v mut [u8]> {
        check_length(value, self.value_stride)?;
        Ok(value)
    }

    fn batch_attr(&self, keys: u64, values: u64, count: u32) -> MapBatch {
        MapBatch {
            in_batch: 0,
            out_batch: 0,
            keys,
            values,
            count,
            map_fd: number(self.fd.as_fd()),
            elem_flags: 0,
            flags: 0,
        }
    }

    /// Checks that the buffers hold the same number of entries, and says how many.
    fn batch_count(&self, keys: &[u8], values: Option<&[u8]>) -> io::Result<u32> {
        let count = keys.len().checked_div(self.key_size).unwrap_or(0);
        check_length(keys, count * self.key_size)?;
        if let Some(values) = values {
            check_length(values, count * self.value_stride)?;
        }
        u32::try_from(count).map_err(io::Error::other)
    }
}

impl AsFd for MapFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What becomes of the entries that a batch has read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Afterwards {
    Keep,
    Delete,
}

fn batch(command: Command, mut attr: MapBatch) -> BatchOutcome {
    let asked = attr.count;
    // SAFETY: the callers above have checked every buffer against `count` and the kernel's sizes.
    let result = unsafe { bpf(command, &mut attr) }.map(drop);
    // The kernel leaves `count` alone when it refuses the call as a whole.
    let refused = matches!(&result, Err(error)
        if attr.count == asked && error.raw_os_error() != Some(libc::ENOENT));
    BatchOutcome { count: if refused { 0 } else { attr.count as usize }, result }
}

fn check_length(buffer: &[u8], expected: usize) -> io::Result<()> {
    if buffer.len() == expected {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a buffer of {} bytes where the map has {expected}", buffer.len()),
        ))
    }
}

/// `PERCPU_HASH`, `PERCPU_ARRAY`, `LRU_PERCPU_HASH`, `PERCPU_CGROUP_STORAGE`.
pub(crate) fn is_per_cpu(map_type: u32) -> bool {
    matches!(map_type, 5 | 6 | 10 | 21)
}

// ---- programs ---------------------------------------------------------------------------------

/// What [`program_load`] needs besides the log.
#[derive(Debug)]
pub(crate) struct ProgramLoad<'a> {
    pub(crate) kind: u32,
    pub(crate) expected_attach_type: u32,
    pub(crate) name: &'a str,
    pub(crate) license: &'a CStr,
    pub(crate) instructions: &'a [aya_obj::generated::bpf_insn],
    pub(crate) kernel_version: u32,
    pub(crate) flags: u32,
    pub(crate) debug: Option<DebugInfo<'a>>,
}

/// The object's BTF and what ties the instructions to it.
#[derive(Debug)]
pub(crate) struct DebugInfo<'a> {
    pub(crate) btf: BorrowedFd<'a>,
    pub(crate) functions: Vec<u8>,
    pub(crate) function_record: usize,
    pub(crate) lines: Vec<u8>,
    pub(crate) line_record: usize,
}

#[derive(Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; OBJECT_NAME_LEN],
    prog_ifindex: u32,
    expected_attach_type: u32,
    prog_btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_cnt: u32,
    line_info_rec_size: u32,
    line_info: u64,
    line_info_cnt: u32,
    attach_btf_id: u32,
}

/// Loads a program; an empty `log` asks for none.
pub(crate) fn program_load(
    load: &ProgramLoad<'_>,
    log_level: u32,
    log: &mut [u8],
) -> io::Result<OwnedFd> {
    let mut attr = ProgLoad {
        prog_type: load.kind,
        insn_cnt: u32::try_from(load.instructions.len()).map_err(io::Error::other)?,
        insns: address(load.instructions),
        license: load.license.as_ptr() as u64,
        log_level: if log.is_empty() { 0 } else { log_level },
        log_size: length(log)?,
        log_buf: address_mut(log),
        kern_version: load.kernel_version,
        prog_flags: load.flags,
        prog_name: object_name(load.name),
        expected_attach_type: load.expected_attach_type,
        ..ProgLoad::default()
    };
    if let Some(debug) = &load.debug {
        attr.prog_btf_fd = number(debug.btf);
        if let Some(count) = debug.functions.len().checked_div(debug.function_record) {
            attr.func_info_rec_size =
                u32::try_from(debug.function_record).map_err(io::Error::other)?;
            attr.func_info = address(&debug.functions);
            attr.func_info_cnt = u32::try_from(count).map_err(io::Error::other)?;
        }
        if let Some(count) = debug.lines.len().checked_div(debug.line_record) {
            attr.line_info_rec_size = u32::try_from(debug.line_record).map_err(io::Error::other)?;
            attr.line_info = address(&debug.lines);
            attr.line_info_cnt = u32::try_from(count).map_err(io::Error::other)?;
        }
    }
    // SAFETY: every address is that of a slice or C string borrowed by this call, with its length.
    unsafe { bpf_fd(Command::ProgLoad, &mut attr) }
}

#[derive(Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct BtfLoad {
    btf: u64,
    log_buf: u64,
    btf_size: u32,
    log_size: u32,
    log_level: u32,
    log_true_size: u32,
}

/// Loads type information; an empty `log` asks for none.
pub(crate) fn btf_load(btf: &[u8], log: &mut [u8]) -> io::Result<OwnedFd> {
    let mut attr = BtfLoad {
        btf: address(btf),
        log_buf: address_mut(log),
        btf_size: length(btf)?,
        log_size: length(log)?,
        log_level: u32::from(!log.is_empty()),
        log_true_size: 0,
    };
    // SAFETY: both addresses are those of slices borrowed by this call, with their lengths.
    unsafe { bpf_fd(Command::BtfLoad, &mut attr) }
}

/// What a test-run is given.
#[derive(Debug)]
pub(crate) struct RunInput<'a> {
    pub(crate) data_in: &'a [u8],
    pub(crate) ctx_in: &'a [u8],
    pub(crate) repeat: u32,
}

/// What a test-run answers, besides the two output buffers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RunOutput {
    pub(crate) return_value: u32,
    pub(crate) duration: u32,
    pub(crate) data_len: usize,
}

#[derive(Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct ProgTestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}

pub(crate) fn program_test_run(
    program: BorrowedFd<'_>,
    input: &RunInput<'_>,
    data_out: &mut [u8],
    ctx_out: &mut [u8],
) -> io::Result<RunOutput> {
    let mut attr = ProgTestRun {
        prog_fd: number(program),
        data_size_in: length(input.data_in)?,
        data_size_out: length(data_out)?,
        data_in: address(input.data_in),
        data_out: address_mut(data_out),
        repeat: input.repeat,
        ctx_size_in: length(input.ctx_in)?,
        ctx_size_out: length(ctx_out)?,
        ctx_in: address(input.ctx_in),
        ctx_out: address_mut(ctx_out),
        ..ProgTestRun::default()
    };
    // SAFETY: every address is that of a slice borrowed by this call, with its length.
    unsafe { bpf(Command::ProgTestRun, &mut attr) }?;
    Ok(RunOutput {
        return_value: attr.retval,
        duration: attr.duration,
        data_len: (attr.data_size_out as usize).min(data_out.len()),
    })
}

#[derive(Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct ById {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

pub(crate) fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attr = ById { id, ..ById::default() };
    // SAFETY: the command reads no address.
    unsafe { bpf_fd(Command::ProgFdById, &mut attr) }
}

// ---- pins -------------------------------------------------------------------------------------

#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Obj {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

pub(crate) fn pin(object: BorrowedFd<'_>, path: &CStr) -> io::Result<()> {
    let mut attr = Obj { pathname: path.as_ptr() as u64, bpf_fd: number(object), file_flags: 0 };
    // SAFETY: the path is a C string borrowed by this call.
    unsafe { bpf(Command::ObjPin, &mut attr) }.map(drop)
}

pub(crate) fn open_pin(path: &CStr) -> io::Result<OwnedFd> {
    let mut attr = Obj { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: the path is a C string borrowed by this call.
    unsafe { bpf_fd(Command::ObjGet, &mut attr) }
}

// ---- information ------------------------------------------------------------------------------

#[derive(Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Info {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// `struct bpf_map_info`, the part every supported kernel has.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct RawMapInfo {
    pub(crate) map_type: u32,
    pub(crate) id: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) map_flags: u32,
    pub(crate) name: [u8; OBJECT_NAME_LEN],
    pub(crate) ifindex: u32,
    pub(crate) btf_vmlinux_value_type_id: u32,
    pub(crate) netns_dev: u64,
    pub(crate) netns_ino: u64,
    pub(crate) btf_id: u32,
    pub(crate) btf_key_type_id: u32,
    pub(crate) btf_value_type_id: u32,
    pub(crate) btf_vmlinux_id: u32,
    pub(crate) map_extra: u64,
}

/// `struct bpf_prog_info` up to `verified_insns`, without the variable parts.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct RawProgramInfo {
    pub(crate) prog_type: u32,
    pub(crate) id: u32,
    pub(crate) tag: [u8; 8],
    pub(crate) jited_prog_len: u32,
    pub(crate) xlated_prog_len: u32,
    pub(crate) jited_prog_insns: u64,
    pub(crate) xlated_prog_insns: u64,
    pub(crate) load_time: u64,
    pub(crate) created_by_uid: u32,
    pub(crate) nr_map_ids: u32,
    pub(crate) map_ids: u64,
    pub(crate) name: [u8; OBJECT_NAME_LEN],
    pub(crate) ifindex: u32,
    pub(crate) bits: u32,
    pub(crate) netns_dev: u64,
    pub(crate) netns_ino: u64,
    pub(crate) symbols: [u64; 3],
    pub(crate) btf_id: u32,
    pub(crate) func_info_rec_size: u32,
    pub(crate) func_info: u64,
    pub(crate) nr_func_info: u32,
    pub(crate) nr_line_info: u32,
    pub(crate) line_info: u64,
    pub(crate) jited_line_info: u64,
    pub(crate) nr_jited_line_info: u32,
    pub(crate) line_info_rec_size: u32,
    pub(crate) jited_line_info_rec_size: u32,
    pub(crate) nr_prog_tags: u32,
    pub(crate) prog_tags: u64,
    pub(crate) run_time_ns: u64,
    pub(crate) run_cnt: u64,
    pub(crate) recursion_misses: u64,
    pub(crate) verified_insns: u32,
    pub(crate) attach_btf_obj_id: u32,
}

/// `struct bpf_link_info` with the TCX member of its union.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct RawLinkInfo {
    pub(crate) link_type: u32,
    pub(crate) id: u32,
    pub(crate) prog_id: u32,
    padding: u32,
    pub(crate) ifindex: u32,
    pub(crate) attach_type: u32,
}

/// `BPF_LINK_TYPE_TCX`
pub(crate) const LINK_TYPE_TCX: u32 = 11;

/// # Safety
///
/// `T` must be the kernel's info structure for the kind of object that `fd` is, with no address in
/// it that the kernel would write to: a zeroed one has none.
unsafe fn info<T: FromZeros + IntoBytes + FromBytes>(fd: BorrowedFd<'_>) -> io::Result<T> {
    let mut info = T::new_zeroed();
    let bytes = info.as_mut_bytes();
    let mut attr = Info { bpf_fd: number(fd), info_len: length(bytes)?, info: address_mut(bytes) };
    // SAFETY: `info` is a buffer of `info_len` bytes and holds no address, being zeroed.
    unsafe { bpf(Command::ObjInfo, &mut attr) }?;
    Ok(info)
}

pub(crate) fn map_info(fd: BorrowedFd<'_>) -> io::Result<RawMapInfo> {
    expect_kind(fd, ObjectKind::Map)?;
    // SAFETY: the descriptor is a map's.
    unsafe { info(fd) }
}

pub(crate) fn program_info(fd: BorrowedFd<'_>) -> io::Result<RawProgramInfo> {
    expect_kind(fd, ObjectKind::Program)?;
    // SAFETY: the descriptor is a program's.
    unsafe { info(fd) }
}

pub(crate) fn link_info(fd: BorrowedFd<'_>) -> io::Result<RawLinkInfo> {
    expect_kind(fd, ObjectKind::Link)?;
    // SAFETY: the descriptor is a link's; links of other kinds have no address in these bytes that
    // a zeroed structure would make the kernel follow.
    unsafe { info(fd) }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ObjectKind {
    Map,
    Program,
    Link,
}

impl ObjectKind {
    fn label(self) -> &'static str {
        match self {
            Self::Map => "bpf-map",
            Self::Program => "bpf-prog",
            Self::Link => "bpf-link",
        }
    }
}

/// The info command fills whatever structure fits the descriptor, so the kind is asked first: the
/// kernel names it in the anonymous inode.
fn expect_kind(fd: BorrowedFd<'_>, kind: ObjectKind) -> io::Result<()> {
    let target = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    let target = target.to_string_lossy();
    // A link is `bpf_link` where it was made and `bpf-link` where it was opened.
    let found = target.strip_prefix("anon_inode:").unwrap_or(&target).replace('_', "-");
    if found.trim_start_matches('[').trim_end_matches(']') == kind.label() {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a {found} where a {} is needed", kind.label()),
        ))
    }
}

// ---- links ------------------------------------------------------------------------------------

#[derive(Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative_fd: u32,
    padding: u32,
    expected_revision: u64,
}

pub(crate) fn tcx_link_create(
    program: BorrowedFd<'_>,
    ifindex: u32,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let mut attr = LinkCreate {
        prog_fd: number(program),
        target_ifindex: ifindex,
        attach_type,
        ..LinkCreate::default()
    };
    // SAFETY: the command reads no address.
    unsafe { bpf_fd(Command::LinkCreate, &mut attr) }
}

#[derive(Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr =
        LinkUpdate { link_fd: number(link), new_prog_fd: number(program), ..LinkUpdate::default() };
    // SAFETY: the command reads no address.
    unsafe { bpf(Command::LinkUpdate, &mut attr) }.map(drop)
}

pub(crate) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = number(link);
    // SAFETY: the command reads no address; its attribute is the descriptor alone.
    unsafe { bpf(Command::LinkDetach, &mut attr) }.map(drop)
}

#[derive(Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct ProgQuery {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    padding: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// The ids of the programs at one hook of a device of the calling thread's network namespace, in
/// the order in which they run.
pub(crate) fn tcx_query(ifindex: u32, attach_type: u32) -> io::Result<Vec<u32>> {
    let mut ids = vec![0_u32; 64];
    loop {
        let mut attr = ProgQuery {
            target_ifindex: ifindex,
            attach_type,
            prog_ids: address_mut(&mut ids),
            count: u32::try_from(ids.len()).map_err(io::Error::other)?,
            ..ProgQuery::default()
        };
        // SAFETY: `prog_ids` holds `count` numbers; the other addresses are zero, which the kernel
        // takes as "not wanted".
        match unsafe { bpf(Command::ProgQuery, &mut attr) } {
            Ok(_) => {
                ids.truncate(attr.count as usize);
                return Ok(ids);
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                ids.resize((attr.count as usize).max(ids.len() * 2), 0);
            }
            Err(error) => return Err(error),
        }
    }
}

/// The number that a program array stores for a program.
pub(crate) fn raw(fd: BorrowedFd<'_>) -> RawFd {
    fd.as_raw_fd()
}

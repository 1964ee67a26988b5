//! Programs, their type information and their test-runs.

use std::ffi::CStr;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{
    Command, OBJECT_NAME_LEN, address, address_mut, bpf, bpf_fd, length, number, object_name,
};

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

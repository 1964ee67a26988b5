//! The kernel program of mini-cni: counts what a pod sends.
//!
//! `cargo xtask ebpf` builds it into `../objects/count.o`.
#![no_std]
#![no_main]

use aya_ebpf::{
    btf_maps::PerCpuArray,
    macros::{btf_map, classifier},
    programs::TcContext,
};

/// Whoever comes next decides; if nobody does, the packet passes.
const TC_ACT_UNSPEC: i32 = -1;

#[btf_map]
static PACKETS: PerCpuArray<u64, 1> = PerCpuArray::new();

#[classifier]
pub fn count(_ctx: TcContext) -> i32 {
    if let Some(packets) = PACKETS.get_ptr_mut(0) {
        // SAFETY: this CPU's own element.
        unsafe { *packets += 1 };
    }
    TC_ACT_UNSPEC
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

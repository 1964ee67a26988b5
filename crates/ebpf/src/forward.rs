//! Where packets go: to a pod, or to the host stack.

use aya_ebpf::{
    bindings::BPF_F_INGRESS,
    helpers::{bpf_redirect, bpf_redirect_peer},
    programs::TcContext,
};
use podwire_abi::{
    Address, EthernetPair, IpcacheEntry, MARK_DECIDED, NodeConfig, Reason, Slot,
    Verdict as FlowVerdict, slot_flag, verdict_flag,
};

use crate::{
    maps::{IPCACHE, SLOTS},
    packet::{
        Bytes, ETH_IPV4, ETH_LEN, Frame, IPV4_LEN, IPV6_LEN, Words, read_u8, read_u16, read_u32,
        read_u64, write_u8, write_u16, write_u32,
    },
    verdict::{Drop, Outcome, Verdict},
};

/// `PACKET_HOST` of linux/if_packet.h.
const PACKET_HOST: u32 = 0;

/// Who has `address`, if it is a local endpoint's; [`endpoint`] says whether it still is.
#[inline(always)]
pub fn holder(address: &Address) -> Option<&'static IpcacheEntry> {
    // SAFETY: entries are plain numbers, and what they name is checked by `endpoint`.
    let entry = unsafe { IPCACHE.get(address) }?;
    (entry.slot != IpcacheEntry::NO_SLOT).then_some(entry)
}

/// The local endpoint that has `address`, by its entry.
#[inline(always)]
pub fn endpoint(entry: &IpcacheEntry, address: &Address) -> Result<&'static Slot, Drop> {
    match SLOTS.get(entry.slot) {
        Some(slot) if slot.generation == entry.generation && slot.owns(address) => Ok(slot),
        _ => Err(Drop(Reason::StaleEndpoint)),
    }
}

/// Hands the packet to the host stack, as if `podwire_host` had received it. Returning OK on the
/// host link would not do: that link has no address, and reverse-path filters drop there.
#[inline(always)]
fn to_stack(frame: Frame, config: &NodeConfig, reason: Reason) -> Outcome {
    set_ethernet(frame.at::<0, ETH_LEN>()?, &config.to_host);
    // SAFETY: a helper call that takes plain numbers.
    let action = unsafe { bpf_redirect(config.host_ifindex, u64::from(BPF_F_INGRESS)) };
    Ok(Verdict::redirected(action, reason))
}

/// Where an IP packet that an endpoint sends goes, by the verdict on it.
#[inline(always)]
pub fn send(
    ctx: &TcContext,
    frame: Frame,
    own: &Slot,
    config: &NodeConfig,
    verdict: FlowVerdict,
) -> Outcome {
    if verdict.has(verdict_flag::TO_STACK) {
        return by_stack(frame, own, config, verdict);
    }
    let peer = SLOTS.get(verdict.peer_slot()).ok_or(Drop(Reason::StaleEndpoint))?;
    // Both families' headers are longer than IPv4's, which is all that an IPv4 packet need have.
    let bytes = frame.at::<0, { ETH_LEN + IPV4_LEN }>()?;
    let (destination, hops) = if read_u16::<12>(bytes) == ETH_IPV4.to_be() {
        (Words::from_ipv4(read_u32::<30>(bytes)), read_u8::<22>(bytes))
    } else {
        let bytes = frame.at::<0, { ETH_LEN + IPV6_LEN }>()?;
        (Words([read_u64::<38>(bytes), read_u64::<46>(bytes)]), read_u8::<21>(bytes))
    };
    if !destination.is_of(peer) {
        return Err(Drop(Reason::StaleEndpoint));
    }
    if hops <= 1 {
        return to_stack(frame, config, Reason::ToStackExpired);
    }
    deliver_routed(ctx, bytes, destination.is_ipv4(), peer)
}

/// What an endpoint sends goes by the host stack: as if `podwire_host` had received it, or by the
/// endpoint's own link.
#[inline(always)]
pub fn by_stack(frame: Frame, own: &Slot, config: &NodeConfig, verdict: FlowVerdict) -> Outcome {
    if own.flags & slot_flag::BY_STACK != 0 {
        return Ok(Verdict::next(Reason::PassedToLink));
    }
    let is_by_flow = verdict.has(verdict_flag::BY_FLOW) && verdict.has(verdict_flag::LOCAL_PEER);
    let reason = if is_by_flow { Reason::ToStackByFlow } else { Reason::ToStack };
    to_stack(frame, config, reason)
}

/// Hands the packet to a pod, after what a router would do to it. `bytes` are the frame's, up to its IP
/// header's end.
#[inline(always)]
pub fn deliver_routed(ctx: &TcContext, bytes: Bytes, is_ipv4: bool, slot: &Slot) -> Outcome {
    if is_ipv4 {
        // The TTL is the upper byte of its word, so the checksum grows by 0x0100. A sum of 0xffff carries
        // as well: no header that is not all zeros has that checksum (RFC 1624, 3), which receivers that
        // compute it anew compare with.
        let sum = u32::from(u16::from_be(read_u16::<24>(bytes))) + 0x0100;
        write_u16::<24>(bytes, ((sum + ((sum + 1) >> 16)) as u16).to_be());
        write_u8::<22>(bytes, read_u8::<22>(bytes) - 1);
    } else {
        write_u8::<21>(bytes, read_u8::<21>(bytes) - 1);
    }
    set_ethernet(bytes, &slot.to_pod);
    hand_over(ctx, slot)
}

/// Hands the packet to a pod; the host stack has done a router's work already.
#[inline(always)]
pub fn deliver_from_stack(ctx: &TcContext, frame: Frame, slot: &Slot) -> Outcome {
    // The router pair is NOARP, its frames carry podwire_host's own address: to the kernel they
    // are another host's, and the pod would not take them.
    ctx.change_type(PACKET_HOST).map_err(|_| Drop(Reason::Unchangeable))?;
    set_ethernet(frame.at::<0, ETH_LEN>()?, &slot.to_pod);
    hand_over(ctx, slot)
}

#[inline(always)]
fn hand_over(ctx: &TcContext, slot: &Slot) -> Outcome {
    if slot.flags & slot_flag::DELIVER_TO_EGRESS != 0 {
        ctx.set_mark(MARK_DECIDED);
        // SAFETY: a helper call that takes plain numbers.
        let action = unsafe { bpf_redirect(slot.ifindex, 0) };
        return Ok(Verdict::redirected(action, Reason::DeliveredToEgress));
    }
    // SAFETY: as above.
    let action = unsafe { bpf_redirect_peer(slot.ifindex, 0) };
    Ok(Verdict::redirected(action, Reason::Delivered))
}

/// Sends the frame, made into an answer, back through the link it came from.
#[inline(always)]
pub fn answer(ctx: &TcContext, slot: &Slot, reason: Reason) -> Outcome {
    ctx.set_mark(MARK_DECIDED);
    // SAFETY: a helper call that takes plain numbers.
    let action = unsafe { bpf_redirect(slot.ifindex, 0) };
    Ok(Verdict::redirected(action, reason))
}

#[inline(always)]
fn set_ethernet(ethernet: Bytes, pair: &EthernetPair) {
    write_u32::<0>(ethernet, pair.0[0]);
    write_u32::<4>(ethernet, pair.0[1]);
    write_u32::<8>(ethernet, pair.0[2]);
}

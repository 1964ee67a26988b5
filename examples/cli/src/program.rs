//! The programs on this node's links.

use std::collections::BTreeMap;

use podwire_api::ROUTER_NET;
use podwire_bpf::{Direction, IfIndex, Program, ProgramInfo, tcx_programs};
use podwire_datapath::abi::program;
use podwire_datapath::{EndpointRow, is_own_filter};
use podwire_netlink::{IfName, Netlink, tc};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::output::Page;
use crate::table::{Cell, Table};

/// Every link of the node is asked, not the pins: what counts is what runs.
pub(crate) fn list(endpoints: &[EndpointRow]) -> Result<Page, Failure> {
    let mut netlink = Netlink::open().map_err(|error| Failure::of(&error))?;
    let mut links: BTreeMap<u32, usize> = BTreeMap::new();
    for index in indices(&mut netlink, endpoints)? {
        for id in attached(&mut netlink, index)? {
            *links.entry(id).or_default() += 1;
        }
    }
    let mut programs = Vec::new();
    for (id, links) in links {
        let info = match Program::by_id(id).and_then(|program| program.info()) {
            Ok(info) => info,
            // Replaced while we were looking.
            Err(error) if error.is_not_found() => continue,
            Err(error) => {
                return Err(Failure::of(&error).with_hint("run it as root: it needs CAP_SYS_ADMIN"));
            }
        };
        // Others may have attached something to the same links.
        if program::ALL.contains(&info.name.as_str()) {
            programs.push((info, links));
        }
    }
    programs.sort_by(|(a, _), (b, _)| (&a.name, a.id).cmp(&(&b.name, b.id)));
    page(&programs)
}

fn page(programs: &[(ProgramInfo, usize)]) -> Result<Page, Failure> {
    let mut table = Table::new()
        .text("NAME")
        .number("ID")
        .text("TAG")
        .number("LINKS")
        .number("CODE BYTES")
        .number("RUNS");
    let mut json = Vec::new();
    for (info, links) in programs {
        table.row([
            Cell::new(&info.name),
            Cell::new(info.id),
            Cell::new(info.tag),
            Cell::new(links),
            Cell::new(info.jited_bytes),
            // Counted only while kernel.bpf_stats_enabled is 1.
            Cell::optional(Some(info.run_count).filter(|count| *count > 0)),
        ]);
        json.push(json!({
            "name": info.name, "id": info.id, "tag": info.tag.to_string(), "links": links,
            "code_bytes": info.jited_bytes, "runs": info.run_count,
            "run_nanoseconds": u64::try_from(info.run_time.as_nanos()).unwrap_or(u64::MAX),
        }));
    }
    Page::new(&Value::Array(json), table.to_string())
}

fn indices(netlink: &mut Netlink, endpoints: &[EndpointRow]) -> Result<Vec<IfIndex>, Failure> {
    let mut indices: Vec<IfIndex> =
        endpoints.iter().filter_map(|row| IfIndex::new(row.ifindex)).collect();
    if let Ok(name) = ROUTER_NET.parse::<IfName>()
        && let Some(link) = netlink.find_link(name).map_err(|error| Failure::of(&error))?
    {
        indices.push(link.index);
    }
    Ok(indices)
}

/// The numbers of the programs on one link, however they are attached.
fn attached(netlink: &mut Netlink, index: IfIndex) -> Result<Vec<u32>, Failure> {
    let mut ids = Vec::new();
    for direction in [Direction::Ingress, Direction::Egress] {
        match tcx_programs(index, direction) {
            Ok(found) => ids.extend(found),
            // A link that is gone, or a kernel without TCX.
            Err(error) if error.is_not_found() || error.is_unsupported() => {}
            Err(error) => return Err(Failure::of(&error)),
        }
        match tc::list(netlink, index, direction) {
            Ok(filters) => ids.extend(filters.iter().filter_map(|filter| {
                let program = filter.bpf.as_ref()?;
                is_own_filter(filter.priority, filter.handle, &program.name).then_some(program.id?)
            })),
            // No clsact there.
            Err(error) if error.is_not_found() || error.raw_os_error() == Some(EINVAL) => {}
            Err(error) => return Err(Failure::of(&error)),
        }
    }
    Ok(ids)
}

/// What the kernel answers to the question for filters of a queueing discipline that is not there.
const EINVAL: i32 = 22;

use super::*;
use crate::fixture::{hex, index, payload, sent};
use proptest::prelude::*;
use std::os::fd::AsFd;

const CLSACT: &str = "
    00000000 03000000 0000ffff f1ffffff 01000000 0b000100 636c7361 63740000 04000200 05000c00 00000000";

fn place() -> FilterPlace {
    FilterPlace { index: index(3), direction: Direction::Ingress, priority: 5, handle: 1 }
}

#[test]
fn what_the_kernel_says_of_qdiscs() {
    let clsact = Qdisc::parse(&hex(CLSACT)).unwrap();
    assert_eq!((clsact.index, clsact.kind.as_str()), (index(3), "clsact"));
    assert_eq!((clsact.handle, clsact.parent), (TcHandle(CLSACT_HANDLE), TcHandle::CLSACT));
    assert_eq!(clsact.handle.to_string(), "ffff:0");
}

#[test]
fn what_the_kernel_says_of_foreign_filters() {
    let filter = Filter::parse(&hex("
        00000000 03000000 00080080 f2ffffff 08000500 08000100 75333200 08000b00 00000000
        0c000200 08000400 01000000"))
    .unwrap();
    assert_eq!((filter.kind.as_str(), filter.priority, filter.protocol), ("u32", 5, 0x0800));
    assert_eq!(filter.direction(), Some(Direction::Ingress));
    assert_eq!((filter.handle, filter.bpf), (0x8000_0800, None));
}

#[test]
fn a_bpf_filter_is_read_back() {
    let bytes = payload(|message| {
        tcmsg(message, index(3), 1, Direction::Egress.parent().0, tc_info(5, ETH_P_ALL));
        message.attr_str(TCA_KIND, b"bpf");
        message.nest(TCA_OPTIONS, |options| {
            options.attr_str(TCA_BPF_NAME, b"to_container");
            options.attr_u32(TCA_BPF_FLAGS, TCA_BPF_FLAG_ACT_DIRECT);
            options.attr_u32(TCA_BPF_ID, 77);
            options.attr(TCA_BPF_TAG, &[1, 2, 3, 4, 5, 6, 7, 8]);
        });
    });
    let filter = Filter::parse(&bytes).unwrap();
    assert_eq!((filter.priority, filter.protocol, filter.handle), (5, ETH_P_ALL, 1));
    assert_eq!(filter.direction(), Some(Direction::Egress));
    let program = FilterProgram {
        name: "to_container".into(),
        id: Some(77),
        tag: Some([1, 2, 3, 4, 5, 6, 7, 8]),
        mode: FilterMode::DirectAction,
    };
    assert_eq!(filter.bpf, Some(program));
}

#[test]
fn requests_to_the_byte() {
    let bytes = hex("
        00000000 03000000 0000ffff f1ffffff 00000000 0b000100 636c7361 63740000");
    assert_eq!(sent(&Add(&Clsact(index(3)))), (RTM_NEWQDISC, 0x601, bytes));

    let program = std::fs::File::open("/dev/null").unwrap();
    let fd = program.as_fd();
    let filter = BpfFilter { place: place(), program: fd, name: "pw" };
    let mut bytes = hex("
        00000000 03000000 01000000 f2ffffff 00030500 08000100 62706600 1c000280 08000600");
    bytes.extend(fd.as_raw_fd().to_ne_bytes());
    bytes.extend(hex("07000700 70770000 08000800 01000000"));
    assert_eq!(sent(&Replace(&filter)), (RTM_NEWTFILTER, 0x501, bytes));

    let bytes = hex("00000000 03000000 01000000 f2ffffff 00030500 08000100 62706600");
    assert_eq!(sent(&Delete(&place())), (RTM_DELTFILTER, 1, bytes));
}

#[test]
fn foreign_is_what_is_neither_harmless_nor_ours() {
    let qdisc = |kind: &str| Qdisc {
        index: index(3),
        kind: kind.into(),
        handle: TcHandle(0),
        parent: TcHandle::ROOT,
    };
    let filter = |kind: &str, priority| Filter {
        index: index(3),
        kind: kind.into(),
        parent: Direction::Ingress.parent(),
        handle: 1,
        priority,
        protocol: ETH_P_ALL,
        chain: 0,
        bpf: None,
    };
    let ours = |filter: &Filter| filter.kind == "bpf" && filter.priority == 1;
    let mut survey = Survey {
        root: Some(qdisc("noqueue")),
        ingress: Some(qdisc("clsact")),
        filters: vec![filter("bpf", 1)],
    };
    assert_eq!(survey.foreign(ours), []);
    survey.filters.push(filter("bpf", 2));
    survey.root = Some(qdisc("tbf"));
    survey.ingress = Some(qdisc("ingress"));
    let foreign: Vec<_> = survey.foreign(ours).iter().map(ToString::to_string).collect();
    assert_eq!(foreign, ["qdisc tbf 0:0", "qdisc ingress 0:0", "filter bpf 2 at ffff:fff2"]);
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
        let _ = Qdisc::parse(&bytes);
        let _ = Filter::parse(&bytes);
        let _ = parse_program(Attributes::new(&bytes));
    }
}

use super::*;
use crate::fixture::{any_family, any_name, any_network, hex, name, net, payload, sent};
use crate::{Add, Delete};
use proptest::option;
use proptest::prelude::*;

#[test]
fn what_the_kernel_says_of_rules() {
    let marked = Rule::parse(&hex("
        02000800 fc000001 00000000 08000f00 e8030000 08000e00 ffffffff 05001500 50000000
        08000600 64000000 08000a00 00020000 08001000 000f0000 08000200 0a000000"))
    .unwrap();
    let expected = Rule::lookup(Family::V4, 100, TableId(1000))
        .from(net("10.0.0.0/8"))
        .mark(Mark { value: 0x200, mask: 0xf00 })
        .protocol(RouteProtocol(80));
    assert_eq!(marked, expected);

    let goto = Rule::parse(&hex("
        02000000 00000002 04000000 08000f00 00000000 08000e00 ffffffff 05001500 00000000
        0b000300 70777465 73740000 08000600 65000000 08000400 c8000000
        0c001400 05000000 06000000"))
    .unwrap();
    assert_eq!((goto.action, goto.input), (RuleAction::Goto(200), Some(name("pwtest"))));
    // What is not understood is kept, so that the rule is not mistaken for one without it.
    assert_eq!(goto.other, [(20, hex("05000000 06000000").into_boxed_slice())]);

    let drop = Rule::parse(&hex("
        0a080000 00000006 00000000 08000f00 00000000 08000e00 ffffffff 05001500 00000000
        08000600 66000000 14000100 fd000000 00000000 00000000 00000000"))
    .unwrap();
    assert_eq!((drop.action, drop.destination), (RuleAction::Blackhole, Some(net("fd00::/8"))));

    let main = Rule::parse(&hex("
        02000000 fe000001 00000000 08000f00 fe000000 08000e00 ffffffff 05001500 02000000
        08000600 fe7f0000"))
    .unwrap();
    let expected = Rule::lookup(Family::V4, 32766, TableId::MAIN).protocol(RouteProtocol::KERNEL);
    assert_eq!(main, expected);
}

#[test]
fn requests_to_the_byte() {
    let rule = Rule::lookup(Family::V4, 100, TableId(1000))
        .from(net("10.0.0.0/8"))
        .mark(Mark { value: 0x200, mask: 0xf00 })
        .protocol(RouteProtocol(80));
    let bytes = hex("
        02000800 00000001 00000000 08000600 64000000 08000f00 e8030000 08000200 0a000000
        08000a00 00020000 08001000 000f0000 05001500 50000000");
    assert_eq!(sent(&Add(&rule)), (RTM_NEWRULE, 0x601, bytes.clone()));
    assert_eq!(sent(&Delete(&rule)), (RTM_DELRULE, 1, bytes));
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let actions = prop_oneof![
        any::<u32>().prop_map(|table| RuleAction::Table(TableId(table))),
        any::<u32>().prop_map(RuleAction::Goto),
        Just(RuleAction::Nothing),
        Just(RuleAction::Blackhole),
        Just(RuleAction::Unreachable),
        Just(RuleAction::Prohibit),
    ];
    let of_family = any_family().prop_flat_map(|family| {
        let source = option::of(any_network(family));
        (Just(family), source, option::of(any_network(family)))
    });
    let marks = option::of((any::<u32>(), 1..=u32::MAX));
    let names = (option::of(any_name()), option::of(any_name()));
    let numbers = (any::<u32>(), any::<u8>(), any::<u8>(), any::<bool>(), option::of(0..u32::MAX));
    let other =
        proptest::collection::vec((22_u16..30, proptest::collection::vec(any::<u8>(), 0..8)), 0..2);
    (of_family, actions, marks, names, numbers, other).prop_map(
        |(of_family, action, marks, names, numbers, other)| {
            let (family, source, destination) = of_family;
            let (priority, tos, protocol, inverted, suppress_prefix_length) = numbers;
            Rule {
                family,
                priority,
                action,
                source: source.filter(|source| source.prefix() != 0),
                destination: destination.filter(|destination| destination.prefix() != 0),
                input: names.0,
                output: names.1,
                mark: marks.map(|(value, mask)| Mark { value, mask }),
                tos,
                sense: if inverted { Sense::Inverted } else { Sense::Matching },
                protocol: RouteProtocol(protocol),
                suppress_prefix_length,
                other: other.into_iter().map(|(kind, value)| (kind, value.into())).collect(),
            }
        },
    )
}

proptest! {
    #[test]
    fn rules_round_trip(rule in any_rule()) {
        prop_assert_eq!(Rule::parse(&payload(|message| rule.emit(message))), Ok(rule));
    }

    #[test]
    fn any_bytes_are_parsed_without_a_panic(
        family in prop_oneof![Just(2_u8), Just(10)],
        bytes in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let mut message = vec![family];
        message.extend(bytes);
        let _ = Rule::parse(&message);
    }
}

use super::*;
use crate::fixture::{hex, index, name, net, payload};
use crate::{Entity, Family};

#[test]
fn messages_become_events() {
    let address = Address::new(index(3), net("10.0.0.1/32"));
    let bytes = payload(|message| address.emit(message));
    let object = Object::Address(address);
    assert_eq!(event(20, &bytes), Ok(Some(Event::Present(object.clone()))));
    assert_eq!(event(21, &bytes), Ok(Some(Event::Absent(object))));

    let rule = Rule::lookup(Family::V6, 100, crate::TableId::MAIN);
    let bytes = payload(|message| rule.emit(message));
    let object = Object::Rule(rule.into());
    assert_eq!(event(32, &bytes), Ok(Some(Event::Present(object.clone()))));
    assert_eq!(event(33, &bytes), Ok(Some(Event::Absent(object))));

    let link = hex("00000000 03000000 00000000 00000000 09000300 65746830 00000000");
    let Ok(Some(Event::Absent(Object::Link(link)))) = event(17, &link) else {
        panic!("no link");
    };
    assert_eq!(link.name, name("eth0"));
}

#[test]
fn what_is_not_ours_to_tell_is_left_out() {
    // A bridge port, a bridge's neighbour, a multicast route, a learnt route, an unknown type.
    for (kind, bytes) in [
        (16, "07000000 03000000 00000000 00000000"),
        (28, "07000000 03000000 00000000"),
        (24, "80000000 fe000001 00000000"),
        (24, "02200000 fe000001 00020000"),
        (99, "02000000"),
        (20, ""),
    ] {
        assert_eq!(event(kind, &hex(bytes)), Ok(None), "{kind}");
    }
    // What should be understood and is not is no silence.
    assert!(event(20, &hex("02200000")).is_err());
}

#[test]
fn outside_of_a_runtime_there_is_an_error() {
    let error = Watch::open(&[Topic::Links]).unwrap_err();
    assert!(matches!(error, Error::Open { .. }), "{error}");
}

//! What endpoints may send and receive, and who is behind addresses.

use podwire_api::{Policy, PolicyAction, PolicyDirection, PolicyRule, PrefixIdentity};

use super::*;
use crate::seam::Terms;

fn rule(peer: &str, protocol: &str, ports: &str) -> PolicyRule {
    let (peer, protocol, ports) = (peer.into(), protocol.into(), ports.into());
    PolicyRule { action: PolicyAction::Allow, peer, protocol, ports }
}

fn only(rules: Vec<PolicyRule>) -> Policy {
    let ingress = PolicyDirection { default: PolicyAction::Deny, rules };
    Policy { ingress, ..Policy::default() }
}

fn entry(prefix: &str, identity: u32) -> PrefixIdentity {
    PrefixIdentity { prefix: prefix.parse().unwrap(), identity }
}

/// What a later start finds on the disk.
fn reopened(bench: Bench) -> store::Opened {
    let Bench { node, folder, .. } = bench;
    let path = folder.path().join("podwire.redb");
    let name = node.config.name.clone();
    drop(node);
    store::open(&path, &name, "boot").unwrap()
}

#[test]
fn a_policy_is_kept_until_it_or_its_endpoint_goes() {
    let bench = bench();
    let (c1, c2) = (id("c1"), id("c2"));
    let http = only(vec![rule("everybody", "tcp", "80")]);
    let unknown = bench.node.set_policy(&c1, &http).unwrap_err();
    assert_eq!(unknown.body().code, ErrorCode::NotFound);
    bench.add("c1", 7).unwrap();
    bench.add("c2", 8).unwrap();
    assert_eq!(bench.node.policy(&c1).unwrap(), Policy::default());
    assert_eq!(bench.node.set_policy(&c1, &http).unwrap(), http);
    bench.node.set_policy(&c2, &http).unwrap();
    assert_eq!(bench.node.policy(&c1).unwrap(), http);
    assert!(!bench.datapath.terms(7).unwrap().policy.unwrap().permits_all());
    assert_eq!(bench.node.delete_policy(&c1).unwrap(), Removed::Removed);
    assert_eq!(bench.node.delete_policy(&c1).unwrap(), Removed::Absent);
    assert!(bench.datapath.terms(7).unwrap().policy.unwrap().permits_all());
    bench.node.set_policy(&c1, &http).unwrap();
    bench.node.delete(&c2).unwrap();
    assert_eq!(reopened(bench).policies, BTreeMap::from([(c1, http)]));
}

#[test]
fn a_refused_policy_leaves_the_last_one() {
    let bench = bench();
    bench.add("c1", 7).unwrap();
    let c1 = id("c1");
    let http = only(vec![rule("everybody", "tcp", "80")]);
    bench.node.set_policy(&c1, &http).unwrap();
    for (wrong, said) in [
        (rule("everyone", "tcp", "80"), "ingress rule 2: peer \"everyone\""),
        (rule("everybody", "icmp", "80"), "icmp has no ports"),
        (rule("10.1.2.3/8", "tcp", "80"), "10.0.0.0/8?"),
    ] {
        let policy = only(vec![rule("everybody", "tcp", "443"), wrong]);
        let error = bench.node.set_policy(&c1, &policy).unwrap_err();
        assert_eq!(error.body().code, ErrorCode::Invalid);
        assert!(error.to_string().contains(said), "{error}");
    }
    bench.datapath.fail_next("set_terms");
    bench.node.set_policy(&c1, &only(vec![])).unwrap_err();
    assert_eq!(bench.node.policy(&c1).unwrap(), http);
    assert_eq!(reopened(bench).policies, BTreeMap::from([(c1, http)]));
}

#[test]
fn an_endpoint_that_is_made_again_has_its_policy_from_the_first_packet_on() {
    let bench = bench();
    let addresses = bench.add("c1", 7).unwrap().addresses;
    let c1 = id("c1");
    bench.node.set_policy(&c1, &only(vec![])).unwrap();
    assert_eq!(bench.node.set_identity(&c1, 4711).unwrap().identity, 4711);
    bench.links.remove(7);
    bench.plug("c1", 9);
    let endpoint = bench.node.create(&c1, &Bench::request("c1", 9, &addresses)).unwrap();
    assert_eq!(endpoint.identity, 4711);
    let terms = bench.datapath.terms(9).unwrap();
    assert_eq!((terms.identity, terms.policy.is_some_and(|one| !one.permits_all())), (4711, true));
    assert_eq!(bench.node.policy(&c1).unwrap(), only(vec![]));
    assert!(bench.node.set_identity(&c1, 0).is_err());
    let opened = reopened(bench);
    assert_eq!(opened.endpoints[0].identity, 4711);
    assert_eq!(opened.policies.len(), 1);
}

#[test]
fn prefixes_are_kept_and_endpoints_are_not_among_them() {
    let bench = bench();
    let own = bench.add("c1", 7).unwrap().addresses[0];
    let (wide, whole) = (entry("192.0.2.0/24", 700), entry("2001:db8::1/128", 701));
    assert_eq!(bench.node.set_prefix_identities(&[wide, whole]).unwrap().prefixes, 2);
    for (wrong, code) in [
        (entry("192.0.2.1/24", 700), ErrorCode::Invalid),
        (entry("192.0.2.0/24", 0), ErrorCode::Invalid),
        (entry(&own.to_string(), 700), ErrorCode::Conflict),
    ] {
        let error = bench.node.set_prefix_identities(&[whole, wrong]).unwrap_err();
        assert_eq!(error.body().code, code, "{error}");
    }
    assert_eq!(bench.node.prefix_identities(), [wide, whole]);
    let forgotten = [wide.prefix, "10.0.0.0/8".parse().unwrap()];
    assert_eq!(bench.node.forget_prefix_identities(&forgotten).unwrap().prefixes, 1);
    assert_eq!(bench.datapath.identities().unwrap(), [(whole.prefix, 701)]);
    assert_eq!(reopened(bench).identities, BTreeMap::from([(whole.prefix, 701)]));
}

#[test]
fn a_start_tells_the_datapath_what_is_on_record_and_nothing_else() {
    let bench = bench();
    let prefix = |text: &str| text.parse::<IpNetwork>().unwrap();
    bench
        .datapath
        .set_identities(&[(prefix("10.7.0.0/16"), 1000), (prefix("10.8.0.0/16"), 8)])
        .unwrap();
    let recorded = BTreeMap::from([(prefix("10.8.0.0/16"), 8), (prefix("10.9.0.0/16"), 9)]);
    let before = super::super::policy::Before::OnRecord;
    let node = bench.node.with_policies(BTreeMap::new(), recorded.clone(), before).unwrap().0;
    assert_eq!(bench.datapath.identities().unwrap(), Vec::from_iter(recorded));
    // After the loss of the records the datapath says what was said, and it is on record again.
    let before = super::super::policy::Before::Unknown;
    let (node, told) = node.with_policies(BTreeMap::new(), BTreeMap::new(), before).unwrap();
    assert_eq!((node.prefix_identities().len(), told.len()), (2, 1));
    // After the machine's start the records have it and the datapath has nothing.
    let all = [prefix("10.8.0.0/16"), prefix("10.9.0.0/16")];
    bench.datapath.forget_identities(&all).unwrap();
    let identities = reopened(Bench { node, ..bench }).identities;
    assert_eq!(Vec::from_iter(identities.keys().copied()), all);
}

#[test]
fn what_was_told_is_in_force_again_after_the_machines_start() {
    let bench = bench();
    let recorded = BTreeMap::from([("10.8.0.0/16".parse().unwrap(), 8)]);
    let before = super::super::policy::Before::Unknown;
    let node = bench.node.with_policies(BTreeMap::new(), recorded.clone(), before).unwrap().0;
    assert_eq!(bench.datapath.identities().unwrap(), Vec::from_iter(recorded));
    assert_eq!(node.prefix_identities(), [entry("10.8.0.0/16", 8)]);
}

/// Terms that somebody else has written into the datapath.
fn written(identity: u32, policy: &Policy) -> Terms {
    let rules = |said: &PolicyDirection| serde_json::to_value(said).unwrap();
    let policy = podwire_policy::Policy {
        ingress: serde_json::from_value(rules(&policy.ingress)).unwrap(),
        egress: serde_json::from_value(rules(&policy.egress)).unwrap(),
    };
    Terms { identity, policy: Some(podwire_policy::Compiled::of(&policy).unwrap()) }
}

fn differences(bench: &Bench, container: &str) -> Vec<String> {
    let inspection = bench.node.inspect(&id(container)).unwrap();
    inspection.differences.iter().map(ToString::to_string).collect()
}

#[test]
fn another_identity_or_policy_than_on_record_is_told_and_put_right() {
    let bench = bench();
    bench.add("a", 7).unwrap();
    let a = id("a");
    let http = only(vec![rule("everybody", "tcp", "80")]);
    bench.node.set_policy(&a, &http).unwrap();
    assert_eq!(differences(&bench, "a"), [] as [&str; 0]);
    let right = bench.datapath.terms(7).unwrap();
    for (wrong, said) in [
        (Terms { identity: 9, ..right.clone() }, "the datapath has identity 9, the record 3"),
        (written(3, &Policy::default()), "the datapath has another policy"),
        (
            written(9, &only(vec![])),
            "the datapath has identity 9, the record 3, and the datapath has another policy",
        ),
    ] {
        bench.datapath.set_terms(7, &wrong).unwrap();
        assert_eq!(differences(&bench, "a").len(), 1);
        assert_eq!(bench.node.policy(&a).unwrap(), http);
        let told = |outcome| vec![("endpoint a/eth0".to_owned(), said.to_owned(), outcome)];
        assert_eq!(disagreements(&bench, OnDisagreement::Report), told(Outcome::Open));
        assert_eq!(disagreements(&bench, OnDisagreement::Repair), told(Outcome::Repaired));
        assert_eq!(bench.datapath.terms(7), Some(right.clone()));
        assert_eq!(disagreements(&bench, OnDisagreement::Report), []);
    }
    bench.datapath.set_terms(7, &written(3, &only(vec![]))).unwrap();
    bench.datapath.fail_next("set_terms");
    let failed = disagreements(&bench, OnDisagreement::Repair);
    assert!(matches!(&failed[..], [(.., Outcome::Failed(_))]), "{failed:?}");
}

#[test]
fn a_policy_in_force_is_shown_and_put_on_record_and_never_lifted() {
    let bench = bench();
    bench.add("a", 7).unwrap();
    let a = id("a");
    let closed = only(vec![rule("identity:4711", "tcp", "8000-8099")]);
    bench.datapath.set_terms(7, &written(3, &closed)).unwrap();
    assert_eq!(bench.node.policy(&a).unwrap(), closed);
    let found = disagreements(&bench, OnDisagreement::Repair);
    let said = "a policy is in force that is not on record".to_owned();
    assert_eq!(found, [("endpoint a/eth0".to_owned(), said, Outcome::Repaired)]);
    assert_eq!(bench.datapath.terms(7), Some(written(3, &closed)));
    assert_eq!(disagreements(&bench, OnDisagreement::Report), []);
    assert_eq!(reopened(bench).policies, BTreeMap::from([(a, closed)]));
}

#[test]
fn rows_that_no_rules_make_stay_in_force_and_are_told() {
    let bench = bench();
    bench.add("a", 7).unwrap();
    // Half a protocol that has no ports.
    let half = podwire_policy::PortRule { first: 5 << 16, last: (5 << 16) + 7 };
    let mut strange = written(3, &only(vec![]));
    strange.policy.as_mut().unwrap().ingress.others = [half].into();
    bench.datapath.set_terms(7, &strange).unwrap();
    let error = bench.node.policy(&id("a")).unwrap_err();
    assert_eq!(error.body().code, ErrorCode::Conflict);
    assert!(error.to_string().contains("a/eth0"), "{error}");
    let found = disagreements(&bench, OnDisagreement::Repair);
    assert!(matches!(&found[..], [(.., Outcome::Failed(why))] if why.contains("policy set")));
    assert_eq!(bench.datapath.terms(7), Some(strange));
    bench.node.delete_policy(&id("a")).unwrap();
    assert_eq!(bench.node.policy(&id("a")).unwrap(), Policy::default());
}

#[test]
fn the_nodes_identity_is_nobody_elses() {
    let bench = bench();
    bench.add("a", 7).unwrap();
    let refused = |error: Error| {
        assert_eq!(error.body().code, ErrorCode::Invalid);
        assert!(error.to_string().contains("identity 1 is the node's own"), "{error}");
    };
    refused(bench.node.set_identity(&id("a"), 1).unwrap_err());
    for prefix in ["192.0.2.7/32", "192.0.2.0/24"] {
        refused(bench.node.set_prefix_identities(&[entry(prefix, 1)]).unwrap_err());
    }
    assert_eq!(bench.node.prefix_identities(), []);
    // Of an address that has become the node's own something was told before.
    let told = [entry("192.0.2.7/32", 700), entry("192.0.2.8/32", 701)];
    bench.node.set_prefix_identities(&told).unwrap();
    let own = told[0].prefix;
    bench.datapath.set_identities(&[(own, 1)]).unwrap();
    let error = bench.node.set_prefix_identities(&[entry("192.0.2.7/32", 702)]).unwrap_err();
    assert_eq!(error.body().code, ErrorCode::Conflict);
    assert!(error.to_string().starts_with("192.0.2.7 is the node's own"), "{error}");
    // A start leaves it the node's.
    let recorded = told.iter().map(|one| (one.prefix, one.identity)).collect();
    let before = super::super::policy::Before::OnRecord;
    let Bench { node, datapath, .. } = bench;
    let (node, repairs) = node.with_policies(BTreeMap::new(), recorded, before).unwrap();
    assert_eq!(repairs, []);
    assert!(datapath.is_own(own.ip()).unwrap());
    assert_eq!(node.prefix_identities(), told);
    // What is forgotten of it is forgotten of who had it before.
    assert_eq!(node.forget_prefix_identities(&[own]).unwrap().prefixes, 1);
    assert!(datapath.is_own(own.ip()).unwrap());
    assert_eq!(node.with_identities(BTreeMap::clone), BTreeMap::from([(told[1].prefix, 701)]));
}

use super::*;

#[test]
fn keys_are_plain_paths_below_net() {
    let name: IfName = "eth0.100".parse().unwrap();
    let key = Key::conf(Family::V4, &name, "rp_filter").unwrap();
    assert_eq!(key.0, "net/ipv4/conf/eth0.100/rp_filter");
    let key = Key::neigh(Family::V6, &name, "gc_stale_time").unwrap();
    assert_eq!(key.0, "net/ipv6/neigh/eth0.100/gc_stale_time");
    assert!(Key::conf(Family::V4, &name, "../all").is_err());
    assert!(Key::conf(Family::V4, &name, "").is_err());
    for bad in
        ["", "net", "kernel/hostname", "net/../kernel/hostname", "net//x", "net/x\0", "/net/x"]
    {
        assert!(bad.parse::<Key>().is_err(), "{bad:?}");
    }
}

#[test]
fn what_is_not_there_is_not_found() {
    let error = read(&"net/no/such/thing".parse().unwrap()).unwrap_err();
    assert!(error.is_not_found(), "{error}");
    assert!(error.to_string().contains("net/no/such/thing"), "{error}");
}

#[test]
#[ignore = "needs root: makes and enters network namespaces"]
fn a_namespace_has_its_own() {
    let (a, b) = (Netns::create().unwrap(), Netns::create().unwrap());
    let forward: Key = "net/ipv4/ip_forward".parse().unwrap();
    write_in(&a, &[(forward.clone(), "1")]).unwrap();
    write_in(&b, &[(forward.clone(), "0")]).unwrap();
    assert_eq!(read_in(&a, &forward).unwrap(), "1");
    assert_eq!(read_in(&b, &forward).unwrap(), "0");

    let lo = "lo".parse().unwrap();
    for family in [Family::V4, Family::V6] {
        let key = Key::conf(family, &lo, "forwarding").unwrap();
        let (first, second) =
            b.run(|| (ensure(&key, "1").unwrap(), ensure(&key, "1").unwrap())).unwrap();
        assert_eq!((first, second), (Ensured::Changed, Ensured::Unchanged), "{family}");
        assert_eq!(read_in(&b, &key).unwrap(), "1");
    }
    let wrong = write_in(&a, &[(forward, "many")]).unwrap_err();
    assert!(wrong.to_string().contains("cannot write sysctl net/ipv4/ip_forward"), "{wrong}");
}

use podwire_api::EndpointId;
use podwire_cluster::{Directory, Namespace, Object, Pod};
use proptest::prelude::*;

use super::*;

fn annotations(pairs: &[(&str, &str)]) -> Annotations {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn request(pod: Option<&str>) -> LeaseRequest {
    let pod = pod.map(|name| PodRef { namespace: "shop".into(), name: name.into(), uid: None });
    LeaseRequest { pod, ..LeaseRequest::new(EndpointId::new("c1", "eth0").unwrap()) }
}

fn names(text: &str) -> Vec<String> {
    text.split(',').map(str::to_owned).collect()
}

fn chosen(pod: &[(&str, &str)], namespace: &[(&str, &str)]) -> Result<Choice, Error> {
    let (pod, namespace) = (annotations(pod), annotations(namespace));
    choose(&Subject::new(&request(Some("web-0")), &pod, &namespace), &names("default,spare"))
}

#[test]
fn the_nearest_wins_in_each_family() {
    let of_pod = [(POOL, "p"), (POOL_IPV4, "p4"), (POOL_IPV6, "p6")];
    let of_namespace = [(POOL, "n"), (POOL_IPV4, "n4"), (POOL_IPV6, "n6")];
    let mut seen = 0;
    // Every combination of the six, against the order in which they count.
    for mask in 0_u32..64 {
        let some = |all: &[(&'static str, &'static str); 3], shift: u32| {
            let is_in = |(at, pair)| (mask >> (shift + at) & 1 == 1).then_some(pair);
            (0..).zip(*all).filter_map(is_in).collect::<Vec<_>>()
        };
        let (pod, namespace) = (some(&of_pod, 0), some(&of_namespace, 3));
        let choice = chosen(&pod, &namespace).unwrap();
        let expected = |family: &str| {
            let value = |all: &[(&'static str, &'static str)], key: &str| {
                all.iter().find(|(name, _)| *name == key).map(|(_, value)| *value)
            };
            let list = value(&pod, family)
                .or(value(&pod, POOL))
                .or(value(&namespace, family))
                .or(value(&namespace, POOL));
            names(list.unwrap_or("default,spare"))
        };
        let expected = (expected(POOL_IPV4), expected(POOL_IPV6));
        assert_eq!((&choice.v4.names, &choice.v6.names), (&expected.0, &expected.1), "{mask:b}");
        seen += 1;
    }
    assert_eq!(seen, 64);
}

#[test]
fn lists_addresses_and_names_are_read() {
    let choice = chosen(
        &[
            (POOL, "blue, red ,a-1"),
            (POOL_IPV6, "six"),
            (IPS, "10.1.0.5, fd00:1::5"),
            ("example.com/pool", "Not Ours"),
        ],
        &[(STICKY, "true"), ("podwire.io.example/x", "neither")],
    );
    assert_eq!(
        choice.unwrap(),
        Choice {
            v4: Pools {
                names: names("blue,red,a-1"),
                origin: Some("annotation podwire.io/pool of pod shop/web-0".into()),
                of_family: false,
            },
            v6: Pools {
                names: names("six"),
                origin: Some("annotation podwire.io/pool-ipv6 of pod shop/web-0".into()),
                of_family: true,
            },
            addresses: vec![[10, 1, 0, 5].into(), "fd00:1::5".parse().unwrap()],
            sticky: Some("shop/web-0".into()),
        }
    );
    let own = chosen(&[(STICKY, "false")], &[(STICKY, "true")]).unwrap();
    assert_eq!((own.sticky, own.addresses), (None, Vec::new()));
}

#[test]
fn what_is_wrong_is_named() {
    let long = "x".repeat(1000);
    for (key, value, why) in [
        (POOL, "", "a name is missing"),
        (POOL, "blue,", "a name is missing"),
        (POOL, "blue,,red", "a name is missing"),
        (POOL, "Blue", "\"Blue\" is no name of a pool"),
        (POOL, "blue red", "\"blue red\" is no name of a pool"),
        (POOL, "-blue", "is no name of a pool"),
        (POOL, "blue-", "is no name of a pool"),
        (POOL, "bl\u{fc}", "is no name of a pool"),
        (POOL, &long, "x\".. is no name of a pool"),
        (POOL_IPV4, "blue,red,blue", "blue is named twice"),
        (POOL_IPV6, "a.b", "\"a.b\" is no name of a pool"),
        (IPS, "", "\"\" is no address"),
        (IPS, "10.1.0.5/24", "\"10.1.0.5/24\" is no address"),
        (IPS, "10.1.0.5,10.1.0.6", "10.1.0.5 and 10.1.0.6 are of one family"),
        (STICKY, "True", "neither true nor false"),
        (STICKY, "yes", "neither true nor false"),
        (
            "podwire.io/pools",
            "blue",
            "does not know it; it knows podwire.io/pool, podwire.io/pool-",
        ),
        ("podwire.io/", "", "does not know it"),
        ("podwire.io/\u{7}", "", "does not know it"),
    ] {
        let error = chosen(&[(key, value)], &[]).unwrap_err();
        let words = error.to_string();
        assert!(words.starts_with("pod shop/web-0: annotation "), "{words}");
        assert!(words.contains(why), "{key}={value}: {words}");
        assert!(words.len() < 500 && !words.contains('\u{7}'), "{words}");
        assert_eq!(error.body().code, podwire_api::ErrorCode::Invalid);

        let error = chosen(&[(POOL, "blue")], &[(key, value)]).unwrap_err().to_string();
        assert!(error.starts_with("namespace shop: annotation "), "{error}");
    }
    let error = chosen(&[], &[(IPS, "10.1.0.5")]).unwrap_err().to_string();
    assert_eq!(
        error,
        "namespace shop: annotation podwire.io/ips: \"10.1.0.5\": it is for pods only"
    );
}

#[test]
fn addresses_are_kept_for_a_name_only() {
    let (pod, none) = (annotations(&[(STICKY, "true")]), Annotations::new());
    let nameless = request(None);
    let error = choose(&Subject::new(&nameless, &pod, &none), &names("default")).unwrap_err();
    assert!(
        error.to_string().starts_with("c1/eth0: annotation podwire.io/sticky: \"true\": it keeps")
    );
}

#[test]
fn the_runtime_and_the_annotation_must_agree() {
    let chooser = Chooser::new(names("default"), None);
    let both = |asked: &[&str], annotated: &str| {
        let mut request = request(Some("web-0"));
        request.addresses = asked.iter().map(|text| text.parse().unwrap()).collect();
        request.annotations = annotations(&[(IPS, annotated)]);
        let choice = chooser.choose(&request);
        choice.map(|choice| choice.addresses.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    assert_eq!(both(&[], "10.1.0.5").unwrap(), ["10.1.0.5"]);
    assert_eq!(both(&["10.1.0.5"], "10.1.0.5").unwrap(), ["10.1.0.5"]);
    assert_eq!(both(&["10.1.0.5"], "fd00::5").unwrap(), ["10.1.0.5", "fd00::5"]);
    let error = both(&["10.1.0.5", "fd00::5"], "10.1.0.6,fd00::5").unwrap_err().to_string();
    assert!(error.contains("names 10.1.0.6") && error.contains("CNI call 10.1.0.5"), "{error}");
}

#[test]
fn another_ipam_plugins_addresses_stay_what_they_are() {
    let chooser = Chooser::new(names("default"), None);
    let mut request = request(Some("web-0"));
    request.addresses = vec![[10, 1, 0, 5].into()];
    request.others = OtherFamilies::Omit;
    request.annotations = annotations(&[(IPS, "10.1.0.5")]);
    assert_eq!(chooser.choose(&request).unwrap().addresses, request.addresses);
    request.annotations = annotations(&[(IPS, "fd00::5")]);
    let error = chooser.choose(&request).unwrap_err().to_string();
    assert!(error.contains("names fd00::5, but the addresses are chosen by another"), "{error}");
}

#[test]
fn the_source_is_asked_for_what_the_runtime_does_not_pass() {
    let snapshot: Snapshot = [
        Object::Pod(Pod {
            namespace: "shop".into(),
            name: "web-0".into(),
            annotations: annotations(&[(POOL, "manifest"), ("other", "x")]),
        }),
        Object::Namespace(Namespace {
            name: "shop".into(),
            annotations: annotations(&[(POOL, "namespace"), (STICKY, "true")]),
        }),
    ]
    .into_iter()
    .collect();
    let chooser = Chooser::new(names("default"), Some(Arc::new(Arc::new(snapshot))));
    let pools = |request: &LeaseRequest| {
        let choice = chooser.choose(request).unwrap();
        assert_eq!(choice.v4.names, choice.v6.names);
        (choice.v4.names.join(","), choice.sticky)
    };
    let sticky = |name: &str| Some(format!("shop/{name}"));
    let mut passed = request(Some("web-0"));
    passed.annotations = annotations(&[(POOL, "runtime")]);
    assert_eq!(pools(&passed), ("runtime".into(), sticky("web-0")));
    assert_eq!(pools(&request(Some("web-0"))), ("manifest".into(), sticky("web-0")));
    assert_eq!(pools(&request(Some("web-1"))), ("namespace".into(), sticky("web-1")));
    assert_eq!(pools(&request(None)), ("default".into(), None));
}

#[test]
fn nothing_is_guessed_of_what_may_be_in_an_unread_file() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, broken) = (folder.path().join("a.yaml"), folder.path().join("b.yaml"));
    std::fs::write(&whole, "apiVersion: v1\nkind: Namespace\nmetadata: { name: shop }\n").unwrap();
    std::fs::write(&broken, "kind: [\n").unwrap();
    let source = Directory::watch(folder.path()).unwrap();
    let chooser = Chooser::new(names("default"), Some(Arc::new(source)));
    let error = chooser.choose(&request(Some("web-0"))).unwrap_err();
    let words = error.to_string();
    assert!(words.starts_with("pod shop/web-0 is not known, and may be in "), "{words}");
    assert!(words.contains("b.yaml"), "{words}");
    assert_eq!(error.body().code, podwire_api::ErrorCode::NotReady);
    assert_eq!(chooser.problems().len(), 1);
    // Its annotations and its namespace are known.
    let mut passed = request(Some("web-0"));
    passed.annotations = annotations(&[(POOL, "runtime")]);
    assert_eq!(chooser.choose(&passed).unwrap().v4.names, ["runtime"]);
    passed.pod.as_mut().unwrap().namespace = "other".into();
    let error = chooser.choose(&passed).unwrap_err().to_string();
    assert!(error.starts_with("namespace other is not known"), "{error}");
    // A container that is no pod.
    assert_eq!(chooser.choose(&request(None)).unwrap().v4.names, ["default"]);
}

proptest! {
    #[test]
    fn no_annotation_makes_it_panic(
        pairs in prop::collection::btree_map(
            prop_oneof![
                prop::sample::select(OF_PODS.to_vec()).prop_map(str::to_owned),
                "podwire.io/\\PC{0,8}",
            ],
            prop_oneof![
                "\\PC{0,100}",
                "[a-z0-9,. :-]{0,40}",
                "(true|false|10\\.1\\.0\\.[0-9]|fd00::[0-9])(,(10\\.1\\.0\\.[0-9]|fd00::[0-9]|blue))?",
            ],
            0..5,
        ),
        of_pod in any::<bool>(),
    ) {
        let (none, request) = (Annotations::new(), request(Some("web-0")));
        let (pod, namespace) = if of_pod { (&pairs, &none) } else { (&none, &pairs) };
        let defaults = names("default");
        match choose(&Subject::new(&request, pod, namespace), &defaults) {
            Ok(choice) => {
                prop_assert!(check_pools(&choice.v4.names).is_ok() && check_pools(&choice.v6.names).is_ok());
                prop_assert!(choice.addresses.len() <= 2);
                prop_assert!(of_pod || choice.addresses.is_empty());
            }
            Err(error) => prop_assert!(error.to_string().contains("annotation ")),
        }
    }
}

//! What an administrator writes: lists, single configurations, folders of them. And what the cache
//! keeps, whatever it is.

#![expect(clippy::unwrap_used, reason = "functions that tests share panic as tests do")]

use std::fs;
use std::path::Path;

use podwire_cni::runtime::{Cache, Entry, Network, Request, network, networks};
use podwire_cni::{Args, Code, SpecVersion};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

fn parse(list: &Value) -> Result<Network, podwire_cni::Error> {
    Network::parse(list.to_string().as_bytes())
}

#[test]
fn lists_that_are_refused() {
    let plugins = json!([{"type": "a"}]);
    for (list, code, words) in [
        (json!({"plugins": plugins}), 7, "name is missing"),
        (json!({"name": 5, "plugins": plugins}), 7, "name is a number"),
        (json!({"name": "../x", "plugins": plugins}), 7, "name \"../x\""),
        (json!({"name": "n"}), 7, "plugins is missing"),
        (json!({"name": "n", "plugins": []}), 7, "plugins is empty"),
        (json!({"name": "n", "plugins": {}}), 7, "plugins is an object"),
        (json!({"name": "n", "plugins": ["a"]}), 7, "plugins[0]: it is a string"),
        (json!({"name": "n", "plugins": [{"type": "a"}, {}]}), 7, "plugins[1]: type is missing"),
        (json!({"name": "n", "plugins": [{"type": 1}]}), 7, "plugins[0]: type is a number"),
        (json!({"name": "n", "plugins": [{"type": "../a"}]}), 7, "plugins[0]: type \"../a\""),
        (json!({"name": "n", "plugins": [{"type": ""}]}), 7, "plugins[0]: type \"\""),
        (
            json!({"name": "n", "plugins": [{"type": "a", "capabilities": ["mac"]}]}),
            7,
            "plugins[0]: capabilities is an array",
        ),
        (
            json!({"name": "n", "plugins": [{"type": "a", "capabilities": {"mac": 1}}]}),
            7,
            "capabilities: mac is a number",
        ),
        (json!({"name": "n", "plugins": plugins, "cniVersion": "0.5.0"}), 1, "0.5.0"),
        (json!({"name": "n", "plugins": plugins, "cniVersion": 1}), 6, "cniVersion"),
        (json!({"name": "n", "plugins": plugins, "cniVersions": "1.0.0"}), 7, "cniVersions is a"),
        (json!({"name": "n", "plugins": plugins, "cniVersions": ["1.0"]}), 7, "\"1.0\" is not a"),
        (json!({"name": "n", "plugins": plugins, "cniVersions": [1]}), 7, "1 is not a version"),
        (
            json!({"name": "n", "plugins": plugins, "cniVersions": ["2.0.0", "0.5.0"]}),
            1,
            "none of the versions 2.0.0, 0.5.0",
        ),
        (json!({"name": "n", "plugins": plugins, "disableCheck": 1}), 7, "disableCheck is 1"),
        (json!({"name": "n", "plugins": plugins, "disableGC": "yes"}), 7, "disableGC is \"yes\""),
        (json!({"name": "n", "loadOnlyInlinedPlugins": true}), 7, "loadOnlyInlinedPlugins is true"),
    ] {
        let error = parse(&list).unwrap_err();
        assert_eq!(error.code().get(), code, "{list}: {error}");
        assert!(error.msg().contains(words), "{list}: {error}");
    }
    for text in ["", "[]", "{", r#"{"name": "n", "name": "m"}"#] {
        assert_eq!(Network::parse(text.as_bytes()).unwrap_err().code(), Code::DECODING_FAILURE);
    }
}

#[test]
fn the_newest_mutual_version_is_chosen() {
    for (version, versions, chosen) in [
        (json!(null), json!(null), SpecVersion::V0_1_0),
        (json!(null), json!([]), SpecVersion::V0_1_0),
        (json!("0.4.0"), json!(null), SpecVersion::V0_4_0),
        (json!("0.4.0"), json!([]), SpecVersion::V0_4_0),
        (json!("0.4.0"), json!(["1.0.0", "1.1.0", "0.3.1"]), SpecVersion::V1_1_0),
        (json!("1.0.0"), json!(["0.4.0"]), SpecVersion::V1_0_0),
        (json!(""), json!(["0.4.0"]), SpecVersion::V0_4_0),
        (json!("1.0.0"), json!(["1.2.0", "2.0.0-rc1", "0.9.9"]), SpecVersion::V1_0_0),
        (json!("2.0.0"), json!(["1.0.0", "2.0.0"]), SpecVersion::V1_0_0),
    ] {
        let list = json!({
            "cniVersion": version, "cniVersions": versions, "name": "n", "plugins": [{"type": "a"}],
        });
        assert_eq!(parse(&list).unwrap().version(), chosen, "{list}");
    }
}

fn write(folder: &Path, name: &str, content: &Value) {
    let file = folder.join(name);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, content.to_string()).unwrap();
}

#[test]
fn a_folder_is_read_in_order_and_bad_files_hide_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    assert_eq!(networks(&folder.join("absent")).unwrap(), []);
    let list = json!({"cniVersion": "1.0.0", "name": "l", "plugins": [{"type": "a"}]});
    let single = json!({"cniVersion": "0.2.0", "name": "s", "type": "b", "disableCheck": true});
    write(folder, "50-list.conflist", &list);
    write(folder, "10-single.conf", &single);
    write(folder, "20-single.json", &json!({"name": "j", "type": "c"}));
    write(folder, "30-bad.conflist", &json!({"name": "bad"}));
    write(folder, "40-list.conf", &list);
    write(folder, "99-again.conflist", &list);
    write(folder, "00-note.txt", &json!("no configuration"));
    fs::create_dir(folder.join("60-folder.conf")).unwrap();

    let found = networks(folder).unwrap();
    let names: Vec<_> = found
        .iter()
        .map(|found| {
            assert_eq!(found.file.parent(), Some(folder));
            found.content.as_ref().map(|network| network.name().as_str()).map_err(|error| {
                assert!(error.msg().starts_with(found.file.to_str().unwrap()), "{error}");
                error.code().get()
            })
        })
        .collect();
    assert_eq!(names, [Ok("s"), Ok("j"), Err(7), Err(7), Ok("l"), Ok("l")]);
    let message = found[3].content.as_ref().unwrap_err().to_string();
    assert!(message.contains("its file must be named *.conflist"), "{message}");

    let single = network(folder, "s").unwrap();
    assert_eq!(single.version(), SpecVersion::V0_2_0);
    assert!(!single.is_check_disabled(), "a key of lists");
    assert_eq!(Network::parse(single.text()).unwrap(), single);
    let error = network(folder, "x").unwrap_err().to_string();
    for words in ["there is no network \"x\"", "there are s, j, l, l", "30-bad.conflist"] {
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn plugins_from_the_networks_folder_follow() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write(folder, "net/20-b.conf", &json!({"type": "b", "capabilities": {"mac": true}}));
    write(folder, "net/10-a.conf", &json!({"type": "a", "key": 1}));
    write(folder, "net/30-c.conflist", &json!({"type": "c"}));
    let inlined = json!([{"type": "main"}]);
    let of = |list: &Value| {
        write(folder, "1.conflist", list);
        network(folder, "net").map(|network| {
            // What the cache keeps is the same without the folder.
            let again = Network::parse(network.text()).unwrap();
            assert_eq!(again.plugins().collect::<Vec<_>>(), network.plugins().collect::<Vec<_>>());
            assert_eq!(again.capabilities(), network.capabilities());
            network.plugins().map(str::to_owned).collect::<Vec<_>>()
        })
    };
    let base = json!({"cniVersion": "1.1.0", "name": "net"});
    let with = |key: &str, value: &Value| {
        let mut list = base.clone();
        list[key] = value.clone();
        list
    };
    assert_eq!(of(&with("plugins", &inlined)).unwrap(), ["main", "a", "b"]);
    assert_eq!(of(&base).unwrap(), ["a", "b"]);
    let mut only = with("plugins", &inlined);
    only["loadOnlyInlinedPlugins"] = true.into();
    assert_eq!(of(&only).unwrap(), ["main"]);
    let mut other = with("plugins", &inlined);
    other["name"] = "other".into();
    write(folder, "2.conflist", &other);
    assert_eq!(network(folder, "other").unwrap().plugins().count(), 1);

    write(folder, "net/40-bad.conf", &json!({"typ": "d"}));
    let error = of(&base).unwrap_err().to_string();
    assert!(error.contains("1.conflist") && error.contains("40-bad.conf"), "{error}");
    assert!(error.contains("type is missing"), "{error}");
}

/// Found by the fuzz target `cni_cache`: numbers were read with an error in the last digit.
#[test]
fn numbers_are_passed_on_as_they_are() {
    let text =
        br#"{"kind": "cniCacheV1", "containerId": "c1", "ifName": "eth0", "networkName": "n",
        "capabilityArgs": {"x": 8.080000000000001e+111}}"#;
    let entry = Entry::parse(text).unwrap();
    assert!(String::from_utf8(entry.to_json()).unwrap().contains("8.080000000000001e+111"));
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            object(inner).prop_map(Value::Object),
        ]
    })
}

fn object(values: impl Strategy<Value = Value>) -> impl Strategy<Value = Map<String, Value>> {
    prop::collection::btree_map(".{0,8}", values, 0..4).prop_map(|map| map.into_iter().collect())
}

fn entry() -> impl Strategy<Value = Entry> {
    (
        "[a-z0-9][a-z0-9_.-]{0,20}",
        "[A-Za-z0-9][A-Za-z0-9_.-]{0,63}",
        "[a-z][a-z0-9.é-]{0,9}",
        prop::option::of("[^\0]{1,20}"),
        prop::collection::vec(("[^=;\0]{1,5}", "[^;\0]{0,5}"), 0..4),
        object(json_value()),
        prop::option::of(object(json_value())),
        any::<String>(),
    )
        .prop_filter_map("no such arguments", |parts| {
            let (network, container, ifname, netns, args, capabilities, result, key) = parts;
            let list = json!({"name": network, "plugins": [{"type": "a", "key": key}]});
            let mut request = Request::new(container.parse().ok()?, ifname.parse().ok()?);
            request.netns = netns.and_then(|netns| netns.parse().ok());
            request.args = Args::from_pairs(args).ok()?;
            request.capabilities = capabilities;
            let mut entry = Entry::new(&parse(&list).ok()?, &request, Value::Null);
            entry.result = result.map(Value::Object);
            Some(entry)
        })
}

proptest! {
    #[test]
    fn a_record_is_read_as_it_was_written(entry in entry()) {
        prop_assert_eq!(&Entry::parse(&entry.to_json()).unwrap(), &entry);
    }

    #[test]
    fn any_bytes_are_a_network_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Network::parse(&bytes);
        let _ = Network::parse_single(&bytes);
        let _ = Entry::parse(&bytes);
    }
}

proptest! {
    // Each is on the disk before it counts.
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn what_the_cache_is_given_it_gives(entry in entry()) {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path());
        let attachment = entry.request.attachment();
        cache.store(&entry).unwrap();
        prop_assert_eq!(cache.entry(&entry.network, &attachment).unwrap(), Some(entry.clone()));
        let all = cache.entries().unwrap();
        prop_assert_eq!(all.len(), 1);
        prop_assert_eq!(all[0].content.as_ref(), Ok(&entry));
        cache.remove(&entry.network, &attachment).unwrap();
        cache.remove(&entry.network, &attachment).unwrap();
        prop_assert_eq!(cache.entries().unwrap().len(), 0);
    }
}

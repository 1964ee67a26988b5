//! host-local's configuration, as host-local reads it.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnetwork::IpNetwork;
use podwire_cni::types::{Object, Route};
use podwire_cni::{Args, Code, Error, NetworkConfig, SpecVersion};
use podwire_ipam::{AddressRange, Family, Plan, RangeSpec};
use serde::Deserialize;
use serde_json::Value;

use crate::error::of_refusal;

const DATA_DIR: &str = "/var/lib/podwire-ipam";

/// Keys by which other plugins are told what to grant. host-local ignores them, as every key that
/// it does not know; we do not, since the wrong addresses would be granted.
const NOT_OURS: [(&str, &str); 8] = [
    ("addresses", "a key of the plugin static"),
    ("exclude", "divide the range instead"),
    ("omit_ranges", "divide the range instead"),
    ("range", "write subnet, rangeStart and rangeEnd"),
    ("range_start", "write rangeStart"),
    ("range_end", "write rangeEnd"),
    ("range-start", "write rangeStart"),
    ("range-end", "write rangeEnd"),
];

/// What is granted to whom, and what is told along with it.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Where addresses come from.
    pub(crate) plan: Plan,
    pub(crate) routes: Vec<Route>,
    /// The file to read `dns` from.
    pub(crate) resolv_conf: Option<PathBuf>,
    /// The addresses asked for in the configuration, the capability `ips` among them.
    pub(crate) asked: Vec<IpAddr>,
}

impl Settings {
    pub(crate) fn read(config: &NetworkConfig) -> Result<Self, Error> {
        let ipam = ipam(config)?;
        for (key, value) in ipam {
            if let Some((_, hint)) = NOT_OURS.iter().find(|(name, _)| key == name) {
                return Err(unsupported(&format!("ipam.{key}"), value, hint));
            }
        }
        Ok(Self {
            plan: plan(config, ipam)?,
            routes: routes(ipam)?,
            resolv_conf: text(ipam, "ipam", "resolvConf")?.map(PathBuf::from),
            asked: asked(config)?,
        })
    }
}

/// The folder of the networks' files.
pub(crate) fn data_dir(config: &NetworkConfig) -> Result<PathBuf, Error> {
    let stated = text(ipam(config)?, "ipam", "dataDir")?;
    Ok(stated.map_or_else(default_data_dir, PathBuf::from))
}

pub(crate) fn default_data_dir() -> PathBuf {
    DATA_DIR.into()
}

/// The address of `IP=` in `CNI_ARGS`. Other keys are refused unless the caller wants them ignored,
/// as host-local does.
pub(crate) fn asked_in_args(args: &Args) -> Result<Option<IpAddr>, Error> {
    let hint = "podwire-ipam knows IP; IgnoreUnknown=1 makes it accept others";
    args.require_known(&["IP"])
        .map_err(|error| Error::new(error.code(), error.msg()).with_details(hint))?;
    match args.value("IP") {
        None | Some("") => Ok(None),
        Some(text) => requested(text).map(Some).ok_or_else(|| {
            let msg = format!("CNI_ARGS is invalid: IP={text} is not an address");
            Error::new(Code::INVALID_ENVIRONMENT_VARIABLES, msg)
                .with_details("write it as in IP=10.1.0.5")
        }),
    }
}

fn ipam(config: &NetworkConfig) -> Result<&Object, Error> {
    match key(config.object(), "ipam") {
        Some(Value::Object(ipam)) => Ok(ipam),
        Some(other) => Err(invalid("ipam", other, "is not an object")),
        None => Err(Error::new(Code::INVALID_NETWORK_CONFIG, "ipam is missing")
            .with_details("podwire-ipam is called by another plugin, with ipam in its settings")),
    }
}

/// In host-local's order: the ranges of the capability, the old single one, the list.
fn plan(config: &NetworkConfig, ipam: &Object) -> Result<Plan, Error> {
    let mut sets = sets(&config.runtime().object, "runtimeConfig", "ipRanges")?;
    // Without a subnet, host-local does not look at the other keys of the old form either.
    if text(ipam, "ipam", "subnet")?.is_some() {
        sets.push(vec![range(ipam, "ipam")?]);
    }
    sets.extend(self::sets(ipam, "ipam", "ranges")?);
    if sets.is_empty() {
        return Err(Error::new(Code::INVALID_NETWORK_CONFIG, "ipam has no ranges")
            .with_details("give ipam.ranges, ipam.subnet or the capability ipRanges"));
    }
    let plan = Plan::new(sets).map_err(|error| of_refusal(&error))?;
    for family in [Family::V4, Family::V6] {
        let count = plan.sets().filter(|set| set[0].family() == family).count();
        if count > 1 && config.version() < SpecVersion::V0_3_0 {
            let version = config.version();
            let msg = format!("cniVersion {version} has one {family} address, ipam {count}");
            return Err(Error::new(Code::INVALID_NETWORK_CONFIG, msg)
                .with_details("give one range set of each family, or cniVersion 0.3.0 or later"));
        }
    }
    Ok(plan)
}

fn sets(object: &Object, within: &str, name: &str) -> Result<Vec<Vec<AddressRange>>, Error> {
    let place = format!("{within}.{name}");
    let mut sets = Vec::new();
    for (number, set) in list(object, within, name)?.iter().enumerate() {
        let place = format!("{place}[{number}]");
        let Value::Array(set) = set else {
            return Err(invalid(&place, set, "is not a list of ranges"));
        };
        let mut ranges = Vec::new();
        for (number, entry) in set.iter().enumerate() {
            let place = format!("{place}[{number}]");
            let Value::Object(entry) = entry else {
                return Err(invalid(&place, entry, "is not an object"));
            };
            let known = ["subnet", "rangeStart", "rangeEnd", "gateway"];
            let unknown =
                entry.iter().find(|(key, _)| !known.iter().any(|k| k.eq_ignore_ascii_case(key)));
            if let Some((key, value)) = unknown {
                let hint = "a range has subnet, rangeStart, rangeEnd and gateway";
                return Err(unsupported(&format!("{place}.{key}"), value, hint));
            }
            ranges.push(range(entry, &place)?);
        }
        sets.push(ranges);
    }
    Ok(sets)
}

fn range(object: &Object, place: &str) -> Result<AddressRange, Error> {
    let Some(subnet) = text(object, place, "subnet")? else {
        return Err(Error::new(Code::INVALID_NETWORK_CONFIG, format!("{place} has no subnet"))
            .with_details("write it as in \"subnet\": \"10.1.0.0/24\""));
    };
    let Some(subnet) = cidr(subnet) else {
        let place = format!("{place}.subnet");
        return Err(invalid(&place, &subnet.into(), "is not ADDRESS/LENGTH"));
    };
    let address = |name: &str| match text(object, place, name)? {
        None => Ok(None),
        Some(text) => match text.parse::<IpAddr>() {
            Ok(address) => Ok(Some(address.to_canonical())),
            Err(_) => Err(invalid(&format!("{place}.{name}"), &text.into(), "is not an address")),
        },
    };
    let mut spec = RangeSpec::new(subnet);
    spec.first = address("rangeStart")?;
    spec.last = address("rangeEnd")?;
    spec.gateway = address("gateway")?;
    spec.build().map_err(|error| {
        let refused = of_refusal(&error);
        Error::new(refused.code(), format!("{place}: {error}")).with_details(refused.details())
    })
}

fn routes(ipam: &Object) -> Result<Vec<Route>, Error> {
    let read = |(number, value): (usize, &Value)| {
        Route::deserialize(value).map_err(|error| {
            invalid(&format!("ipam.routes[{number}]"), value, "is not a route")
                .with_details(format!("{error}; write it as in {{\"dst\": \"0.0.0.0/0\"}}"))
        })
    };
    list(ipam, "ipam", "routes")?.iter().enumerate().map(read).collect()
}

/// Of `args.cni.ips` and the capability `ips`.
fn asked(config: &NetworkConfig) -> Result<Vec<IpAddr>, Error> {
    let mut asked = Vec::new();
    if let Some(Value::Object(args)) = config.args().and_then(|args| args.get("cni")) {
        for (number, value) in list(args, "args.cni", "ips")?.iter().enumerate() {
            let address = value.as_str().and_then(requested);
            asked.push(address.ok_or_else(|| {
                invalid(&format!("args.cni.ips[{number}]"), value, "is not an address")
            })?);
        }
    }
    asked.extend(config.runtime().ips.iter().map(|ip| ip.ip().to_canonical()));
    Ok(asked)
}

/// An address that may have a prefix length, which says nothing here.
fn requested(text: &str) -> Option<IpAddr> {
    match text.contains('/') {
        true => cidr(text).map(|cidr| cidr.ip().to_canonical()),
        false => text.parse().ok().map(|address: IpAddr| address.to_canonical()),
    }
}

/// With a length, not with a netmask, which `IpNetwork` would read.
fn cidr(text: &str) -> Option<IpNetwork> {
    let (address, length) = text.split_once('/')?;
    let digits = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
    let length = length.parse().ok().filter(|_| digits)?;
    IpNetwork::new(address.parse().ok()?, length).ok()
}

/// Go's library finds keys in upper and lower case alike, and takes null for nothing.
fn key<'a>(object: &'a Object, name: &str) -> Option<&'a Value> {
    let any_case = || object.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, v)| v);
    object.get(name).or_else(any_case).filter(|value| !value.is_null())
}

/// Text that may be missing or empty.
fn text<'a>(object: &'a Object, within: &str, name: &str) -> Result<Option<&'a str>, Error> {
    match key(object, name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
        Some(other) => Err(invalid(&format!("{within}.{name}"), other, "is not a string")),
    }
}

fn list<'a>(object: &'a Object, within: &str, name: &str) -> Result<&'a [Value], Error> {
    match key(object, name) {
        None => Ok(&[]),
        Some(Value::Array(list)) => Ok(list),
        Some(other) => Err(invalid(&format!("{within}.{name}"), other, "is not a list")),
    }
}

fn invalid(place: &str, value: &Value, what: &str) -> Error {
    Error::new(Code::INVALID_NETWORK_CONFIG, format!("{place} {value} {what}"))
        .with_details(format!("correct {place} in the network configuration"))
}

/// With key and value, as the specification demands.
fn unsupported(place: &str, value: &Value, hint: &str) -> Error {
    Error::new(Code::UNSUPPORTED_FIELD, format!("{place} {value} is not supported"))
        .with_details(hint)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(mut object: Value) -> NetworkConfig {
        for (key, value) in [("cniVersion", json!("1.0.0")), ("name", json!("net"))] {
            if object.get(key).is_none() {
                object[key] = value;
            }
        }
        NetworkConfig::parse(object.to_string().as_bytes()).unwrap()
    }

    fn read(object: Value) -> Result<Settings, Error> {
        Settings::read(&config(object))
    }

    fn sets_of(settings: &Settings) -> Vec<Vec<String>> {
        let set = |set: &[AddressRange]| set.iter().map(ToString::to_string).collect();
        settings.plan.sets().map(set).collect()
    }

    /// The examples of host-local's own documentation, with its type.
    #[test]
    fn documented_configurations() {
        let example = read(json!({ "ipam": {
            "type": "host-local",
            "ranges": [
                [
                    {
                        "subnet": "10.10.0.0/16", "rangeStart": "10.10.1.20",
                        "rangeEnd": "10.10.3.50", "gateway": "10.10.0.254"
                    },
                    { "subnet": "172.16.5.0/24" }
                ],
                [{
                    "subnet": "3ffe:ffff:0:01ff::/64",
                    "rangeStart": "3ffe:ffff:0:01ff::0010", "rangeEnd": "3ffe:ffff:0:01ff::0020"
                }]
            ],
            "routes": [
                { "dst": "0.0.0.0/0" },
                { "dst": "192.168.0.0/16", "gw": "10.10.5.1" },
                { "dst": "3ffe:ffff:0:01ff::1/64" }
            ],
            "dataDir": "/run/my-orchestrator/container-ipam-state"
        }}))
        .unwrap();
        assert_eq!(
            sets_of(&example),
            [
                vec!["10.10.1.20-10.10.3.50", "172.16.5.0/24"],
                vec!["3ffe:ffff:0:1ff::10-3ffe:ffff:0:1ff::20"]
            ]
        );
        assert_eq!(example.routes.len(), 3);
        assert_eq!(example.routes[1].gw.unwrap().to_string(), "10.10.5.1");
        assert_eq!(example.routes[2].dst.to_string(), "3ffe:ffff:0:1ff::1/64");

        let old = json!({ "ipam": {
            "type": "host-local", "subnet": "3ffe:ffff:0:01ff::/64",
            "rangeStart": "3ffe:ffff:0:01ff::0010", "rangeEnd": "3ffe:ffff:0:01ff::0020",
            "routes": [{ "dst": "3ffe:ffff:0:01ff::1/64" }],
            "resolvConf": "/etc/resolv.conf"
        }});
        let old = read(old).unwrap();
        assert_eq!(sets_of(&old), [["3ffe:ffff:0:1ff::10-3ffe:ffff:0:1ff::20"]]);
        assert_eq!(old.resolv_conf.unwrap().to_str(), Some("/etc/resolv.conf"));

        let plain = read(json!({ "ipam": { "type": "host-local", "subnet": "203.0.113.0/24" } }));
        assert_eq!(sets_of(&plain.unwrap()), [["203.0.113.0/24"]]);
    }

    #[test]
    fn the_capability_comes_first_then_the_old_form_then_the_list() {
        let settings = read(json!({
            "ipam": {
                "subnet": "10.1.0.0/24", "ranges": [[{ "subnet": "10.2.0.0/24" }]],
                "routes": null, "dataDir": "", "Comment": "ignored, as host-local does"
            },
            "runtimeConfig": { "ipRanges": [[{ "subnet": "10.3.0.0/24" }]] },
        }))
        .unwrap();
        assert_eq!(sets_of(&settings), [["10.3.0.0/24"], ["10.1.0.0/24"], ["10.2.0.0/24"]]);
    }

    #[test]
    fn keys_are_found_in_any_case_and_some_are_ignored() {
        let settings = read(json!({ "ipam": {
            "Ranges": [[{ "Subnet": "10.1.0.0/24", "rangestart": "10.1.0.9", "gateway": null }]],
            "gateway": "10.9.9.9", "rangeEnd": "10.9.9.9", "name": "x"
        }}))
        .unwrap();
        assert_eq!(sets_of(&settings), [["10.1.0.9-10.1.0.254"]]);
    }

    #[test]
    fn data_dir_is_ours_unless_one_is_given() {
        let dir = |ipam: Value| data_dir(&config(json!({ "ipam": ipam }))).unwrap();
        assert_eq!(dir(json!({})).to_str(), Some("/var/lib/podwire-ipam"));
        assert_eq!(dir(json!({ "dataDir": "" })).to_str(), Some("/var/lib/podwire-ipam"));
        assert_eq!(dir(json!({ "dataDir": "/run/x" })).to_str(), Some("/run/x"));
    }

    #[test]
    fn addresses_asked_for() {
        let settings = read(json!({
            "ipam": { "subnet": "10.1.0.0/24" },
            "args": { "cni": { "ips": ["10.1.0.5", "10.1.0.6/24", "::ffff:10.1.0.8"] } },
            "runtimeConfig": { "ips": ["10.1.0.7/24", "fd00::7"] },
        }))
        .unwrap();
        let asked: Vec<String> = settings.asked.iter().map(ToString::to_string).collect();
        assert_eq!(asked, ["10.1.0.5", "10.1.0.6", "10.1.0.8", "10.1.0.7", "fd00::7"]);

        let of = |text: &str| asked_in_args(&Args::parse(text).unwrap());
        assert_eq!(of("IP=10.1.0.5").unwrap().unwrap().to_string(), "10.1.0.5");
        assert_eq!(
            of("IgnoreUnknown=1;IP=fd00::5/64;X=1").unwrap().unwrap().to_string(),
            "fd00::5"
        );
        assert_eq!(of("IP=").unwrap(), None);
        for (bad, what) in [("IP=x", "IP=x"), ("IP=10.1.0.5;X=1", "unknown keys X")] {
            let error = of(bad).unwrap_err();
            assert_eq!(error.code(), Code::INVALID_ENVIRONMENT_VARIABLES);
            assert!(error.msg().contains(what) && !error.details().is_empty(), "{error}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_what_to_do() {
        let set = |first: &str, second: &str| json!({ "ipam": { "ranges": [[{ "subnet": first }, { "subnet": second }]] } });
        let range = |range: Value| json!({ "ipam": { "ranges": [[range]] } });
        let cases = [
            (json!({}), 7, "ipam is missing"),
            (json!({ "ipam": [] }), 7, "ipam [] is not an object"),
            (json!({ "ipam": {} }), 7, "ipam has no ranges"),
            (json!({ "ipam": { "ranges": [[]] } }), 7, "range set 0 has no range"),
            (json!({ "ipam": { "ranges": [{}] } }), 7, "ipam.ranges[0] {} is not a list"),
            (set("10.0.0.0/16", "10.0.1.0/24"), 7, "10.0.0.0/16 and 10.0.1.0/24 overlap"),
            (set("10.0.0.0/16", "fd00::/64"), 7, "10.0.0.0/16 and fd00::/64 are of two families"),
            (range(json!({})), 7, "ipam.ranges[0][0] has no subnet"),
            (range(json!({ "subnet": "10.0.0.0/31" })), 7, "ipam.ranges[0][0]: 10.0.0.0/31 is too"),
            (range(json!({ "subnet": "10.0.0.1/24" })), 7, "the subnet is 10.0.0.0/24"),
            (range(json!({ "subnet": "10.0.0.0" })), 7, "[0].subnet \"10.0.0.0\" is not ADDRESS"),
            (range(json!({ "subnet": "10.0.0.0/255.0.0.0" })), 7, "is not ADDRESS/LENGTH"),
            (range(json!({ "subnet": 10 })), 7, "ipam.ranges[0][0].subnet 10 is not a string"),
            (
                range(json!({ "subnet": "10.0.0.0/24", "gateway": "10.0.1.1" })),
                7,
                "the gateway 10.0.1.1 is not in 10.0.0.0/24",
            ),
            (
                range(json!({ "subnet": "10.0.0.0/24", "rangeStart": "10.0.0" })),
                7,
                "ipam.ranges[0][0].rangeStart \"10.0.0\" is not an address",
            ),
            (
                range(json!({ "subnet": "10.0.0.0/24", "rangeStrat": "10.0.0.5" })),
                2,
                "ipam.ranges[0][0].rangeStrat \"10.0.0.5\" is not supported",
            ),
            (
                json!({ "ipam": { "subnet": "10.0.0.0/24", "exclude": ["10.0.0.0/30"] } }),
                2,
                "ipam.exclude [\"10.0.0.0/30\"] is not supported",
            ),
            (
                json!({ "ipam": { "subnet": "10.0.0.0/24", "routes": [{ "gw": "10.0.0.1" }] } }),
                7,
                "ipam.routes[0] {\"gw\":\"10.0.0.1\"} is not a route",
            ),
            (
                json!({
                    "cniVersion": "0.2.0",
                    "ipam": { "ranges": [[{ "subnet": "10.0.0.0/24" }], [{ "subnet": "10.1.0.0/24" }]] }
                }),
                7,
                "cniVersion 0.2.0 has one IPv4 address, ipam 2",
            ),
            (
                json!({
                    "ipam": { "subnet": "10.0.0.0/24" },
                    "args": { "cni": { "ips": ["here"] } }
                }),
                7,
                "args.cni.ips[0] \"here\" is not an address",
            ),
        ];
        for (object, code, what) in cases {
            let error = read(object).unwrap_err();
            assert_eq!(error.code().get(), code, "{error}");
            assert!(error.msg().contains(what), "{error}");
            assert!(!error.details().is_empty(), "{error}");
        }
    }
}

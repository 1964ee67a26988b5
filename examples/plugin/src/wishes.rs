//! What the runtime wishes for a pod's addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use podwire_api::ANNOTATION_PREFIX;
use podwire_cni::{Args, Code, Error, NetworkConfig};
use serde_json::Value;

/// The pod's annotations that the agent chooses by.
pub(crate) fn annotations(config: &NetworkConfig) -> BTreeMap<String, String> {
    let all = &config.runtime().pod_annotations;
    let ours = all.iter().filter(|(key, _)| key.starts_with(ANNOTATION_PREFIX));
    ours.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// The addresses that it names, one of a family at most. It may name them in several places, as podman
/// does, but not different ones.
pub(crate) fn addresses(config: &NetworkConfig, args: &Args) -> Result<Vec<IpAddr>, Error> {
    let mut wishes = Wishes::default();
    for address in config.runtime().ips.iter().map(IpNetwork::ip) {
        wishes.add("runtimeConfig.ips", Code::INVALID_NETWORK_CONFIG, address)?;
    }
    for (number, value) in listed(config)?.iter().enumerate() {
        let address = value.as_str().and_then(parse).ok_or_else(|| {
            let msg = format!("args.cni.ips[{number}] {value} is no address");
            Error::new(Code::INVALID_NETWORK_CONFIG, msg)
        })?;
        wishes.add("args.cni.ips", Code::INVALID_NETWORK_CONFIG, address)?;
    }
    if let Some(text) = args.value("IP") {
        let code = Code::INVALID_ENVIRONMENT_VARIABLES;
        let address = text
            .parse()
            .map_err(|_| Error::new(code, format!("CNI_ARGS: IP={text} is no address")))?;
        wishes.add("CNI_ARGS: IP", code, address)?;
    }
    Ok(wishes.0.into_iter().map(|(_, address)| address).collect())
}

/// Addresses, and the places that name them.
#[derive(Default)]
struct Wishes(Vec<(&'static str, IpAddr)>);

impl Wishes {
    fn add(&mut self, place: &'static str, code: Code, address: IpAddr) -> Result<(), Error> {
        match self.0.iter().find(|(_, one)| one.is_ipv4() == address.is_ipv4()) {
            None => self.0.push((place, address)),
            Some((_, one)) if *one == address => {}
            Some((first, one)) => {
                let msg = format!("{first} names {one}, and {place} {address}");
                return Err(
                    Error::new(code, msg).with_details("an interface has one address of a family")
                );
            }
        }
        Ok(())
    }
}

/// `args.cni.ips` (CONVENTIONS.md of the specification's repository).
fn listed(config: &NetworkConfig) -> Result<&[Value], Error> {
    let cni = config.object().get("args").and_then(|args| args.get("cni"));
    match cni.and_then(|cni| cni.get("ips")) {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(list)) => Ok(list),
        Some(other) => {
            let msg = format!("args.cni.ips {other} is no list of addresses");
            Err(Error::new(Code::INVALID_NETWORK_CONFIG, msg))
        }
    }
}

/// With a prefix length or without.
fn parse(text: &str) -> Option<IpAddr> {
    text.parse().ok().or_else(|| text.parse().ok().map(|network: IpNetwork| network.ip()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(keys: Value) -> NetworkConfig {
        let mut object = json!({ "cniVersion": "1.0.0", "name": "net", "type": "podwire-cni" });
        let Value::Object(keys) = keys else { panic!("{keys}") };
        object.as_object_mut().unwrap().extend(keys);
        NetworkConfig::parse(object.to_string().as_bytes()).unwrap()
    }

    fn wished(ips: &[&str], listed: &Value, args: &str) -> Result<Vec<String>, String> {
        let config = config(json!({
            "runtimeConfig": { "ips": ips }, "args": { "cni": { "ips": listed } },
        }));
        let wished = addresses(&config, &Args::parse(args).unwrap());
        let wished = wished.map_err(|error| error.msg().to_owned())?;
        Ok(wished.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn addresses_are_taken_from_all_places() {
        assert_eq!(wished(&[], &Value::Null, ""), Ok(vec![]));
        // As podman does with two addresses.
        let both = wished(&["10.1.0.5", "fd00::5"], &Value::Null, "IP=10.1.0.5");
        assert_eq!(both.unwrap(), ["10.1.0.5", "fd00::5"]);
        let each = wished(&["10.1.0.5/24"], &json!(["fd00::5/64"]), "IgnoreUnknown=1");
        assert_eq!(each.unwrap(), ["10.1.0.5", "fd00::5"]);
    }

    #[test]
    fn places_that_differ_are_named() {
        for (ips, listed, args, words) in [
            (
                &["10.1.0.5"][..],
                Value::Null,
                "IP=10.1.0.6",
                "runtimeConfig.ips names 10.1.0.5, and CNI_ARGS: IP 10.1.0.6",
            ),
            (
                &[],
                json!(["fd00::5"]),
                "IP=fd00::6",
                "args.cni.ips names fd00::5, and CNI_ARGS: IP fd00::6",
            ),
            (
                &["10.1.0.5", "10.1.0.6"],
                Value::Null,
                "",
                "runtimeConfig.ips names 10.1.0.5, and runtimeConfig.ips 10.1.0.6",
            ),
            (&[], json!(["here"]), "", "args.cni.ips[0] \"here\" is no address"),
            (&[], json!([7]), "", "args.cni.ips[0] 7 is no address"),
            (&[], json!("10.1.0.5"), "", "args.cni.ips \"10.1.0.5\" is no list of addresses"),
            (&[], Value::Null, "IP=here", "CNI_ARGS: IP=here is no address"),
        ] {
            assert_eq!(wished(ips, &listed, args).unwrap_err(), words);
        }
    }

    #[test]
    fn only_podwires_annotations_are_passed_on() {
        let config = config(json!({ "runtimeConfig": { "io.kubernetes.cri.pod-annotations": {
            "podwire.io/pool": "blue", "kubernetes.io/config.source": "api",
        }}}));
        let expected = BTreeMap::from([("podwire.io/pool".to_owned(), "blue".to_owned())]);
        assert_eq!(annotations(&config), expected);
        assert_eq!(annotations(&self::config(json!({}))), BTreeMap::new());
    }
}

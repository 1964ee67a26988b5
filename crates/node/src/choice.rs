//! Which pools a pod gets its addresses from, and which addresses, by what is said of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use podwire_api::{ANNOTATION_PREFIX, LeaseRequest, OtherFamilies, PodRef};
use podwire_cluster::{Snapshot, Source};

use crate::Error;

type Annotations = BTreeMap<String, String>;

const POOL: &str = "podwire.io/pool";
const POOL_IPV4: &str = "podwire.io/pool-ipv4";
const POOL_IPV6: &str = "podwire.io/pool-ipv6";
const IPS: &str = "podwire.io/ips";
const STICKY: &str = "podwire.io/sticky";

/// What a namespace may have.
const OF_NAMESPACES: [&str; 4] = [POOL, POOL_IPV4, POOL_IPV6, STICKY];

/// What a pod may have.
const OF_PODS: [&str; 5] = [POOL, POOL_IPV4, POOL_IPV6, IPS, STICKY];

/// How much of a value an error shows.
const SHOWN: usize = 80;

/// Where a pod's addresses come from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Choice {
    /// Pools of IPv4 addresses, in the order in which they are tried.
    pub(crate) v4: Pools,
    /// Pools of IPv6 addresses.
    pub(crate) v6: Pools,
    /// The addresses that it must have, at most one per family.
    pub(crate) addresses: Vec<IpAddr>,
    /// The name that keeps the addresses when the pod goes, if any does.
    pub(crate) sticky: Option<String>,
}

/// Pools in the order in which they are tried.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Pools {
    pub(crate) names: Vec<String>,
    /// The annotation that names them; `None` for the node's default.
    pub(crate) origin: Option<String>,
    /// Whether that annotation is about one family: then the pod is to have an address of it.
    pub(crate) of_family: bool,
}

impl Choice {
    /// That a pool of the choice is not there.
    pub(crate) fn no_pool(&self, pool: String, known: Vec<String>) -> Error {
        let lists = [&self.v4, &self.v6];
        let list = lists.into_iter().find(|list| list.names.contains(&pool));
        let origin = list.and_then(|list| list.origin.clone());
        let origin = origin.unwrap_or_else(|| "--default-pool of podwired".into());
        Error::NoPool { pool, origin, known }
    }
}

/// What a node chooses by.
#[derive(Debug)]
pub(crate) struct Chooser {
    default_pools: Vec<String>,
    source: Option<Arc<dyn Source>>,
}

impl Chooser {
    pub(crate) fn new(default_pools: Vec<String>, source: Option<Arc<dyn Source>>) -> Self {
        Self { default_pools, source }
    }

    /// By the annotations of the request, or of the pod's manifest where the runtime passed none, and
    /// by those of the namespace.
    pub(crate) fn choose(&self, request: &LeaseRequest) -> Result<Choice, Error> {
        let (snapshot, none) = (self.snapshot(), Annotations::new());
        let (mut pod, mut namespace) = (&request.annotations, &none);
        if let (Some(PodRef { namespace: of, name, .. }), Some(snapshot)) =
            (&request.pod, &snapshot)
        {
            if pod.is_empty() {
                let found = snapshot.pod(of, name).map(|pod| &pod.annotations);
                pod = known(snapshot, found, &none, || format!("pod {of}/{name}"))?;
            }
            let found = snapshot.namespace(of).map(|namespace| &namespace.annotations);
            namespace = known(snapshot, found, &none, || format!("namespace {of}"))?;
        }
        let mut choice = choose(&Subject::new(request, pod, namespace), &self.default_pools)?;
        choice.addresses = agreed(request, &choice.addresses)?;
        Ok(choice)
    }

    /// What is wrong with the source.
    pub(crate) fn problems(&self) -> Vec<podwire_cluster::Problem> {
        self.snapshot().map_or_else(Vec::new, |snapshot| snapshot.problems().to_vec())
    }

    fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.source.as_ref().map(|source| source.snapshot())
    }
}

/// The annotations of an object. One that is not there has none, unless it may be in a file that was
/// never read: to guess then would be to give addresses of the wrong pool.
fn known<'a>(
    snapshot: &Snapshot,
    found: Option<&'a Annotations>,
    none: &'a Annotations,
    object: impl FnOnce() -> String,
) -> Result<&'a Annotations, Error> {
    match (found, snapshot.unread()) {
        (Some(annotations), _) => Ok(annotations),
        (None, []) => Ok(none),
        (None, [file, ..]) => Err(Error::Unread { object: object(), file: file.clone() }),
    }
}

/// What both the runtime and the annotation want, which must not contradict each other.
fn agreed(request: &LeaseRequest, annotated: &[IpAddr]) -> Result<Vec<IpAddr>, Error> {
    let mut addresses = request.addresses.clone();
    for &address in annotated {
        match request.addresses.iter().find(|one| one.is_ipv4() == address.is_ipv4()) {
            None if request.others == OtherFamilies::Omit => {
                return Err(Error::Invalid(format!(
                    "annotation {IPS} names {address}, but the addresses are chosen by another IPAM \
                     plugin, which gave none of that family"
                )));
            }
            None => addresses.push(address),
            Some(asked) if *asked == address => {}
            Some(asked) => {
                return Err(Error::Invalid(format!(
                    "annotation {IPS} names {address}, and the CNI call {asked}: a pod has one \
                     address of a family"
                )));
            }
        }
    }
    Ok(addresses)
}

/// For whom is chosen.
struct Subject<'a> {
    /// `namespace/name`.
    pod: Option<String>,
    of_pod: Annotated<'a>,
    of_namespace: Annotated<'a>,
}

impl<'a> Subject<'a> {
    fn new(request: &LeaseRequest, pod: &'a Annotations, namespace: &'a Annotations) -> Self {
        let name = request.pod.as_ref().map(|pod| format!("{}/{}", pod.namespace, pod.name));
        let (of_pod, of_namespace) = match (&request.pod, &name) {
            (Some(pod), Some(name)) => {
                (format!("pod {name}"), format!("namespace {}", pod.namespace))
            }
            _ => (request.id.to_string(), "no namespace".to_owned()),
        };
        Self {
            pod: name,
            of_pod: Annotated { of: of_pod, annotations: pod, allowed: &OF_PODS },
            of_namespace: Annotated {
                of: of_namespace,
                annotations: namespace,
                allowed: &OF_NAMESPACES,
            },
        }
    }
}

/// By annotations alone. All are looked at, also those that something else takes precedence over:
/// what is wrong is told when it is written, and not when it begins to count.
fn choose(subject: &Subject<'_>, default_pools: &[String]) -> Result<Choice, Error> {
    let Subject { pod, of_pod, of_namespace } = subject;
    let (own, shared) = (of_pod.read()?, of_namespace.read()?);
    let default = || Pools { names: default_pools.to_vec(), origin: None, of_family: false };
    let pools = |own_of_family: Option<Pools>, shared_of_family: Option<Pools>| {
        own_of_family
            .or_else(|| own.pools.clone())
            .or(shared_of_family)
            .or_else(|| shared.pools.clone())
            .unwrap_or_else(default)
    };
    let sticky = match (own.sticky.or(shared.sticky), pod) {
        (Some(true), Some(pod)) => Some(pod.clone()),
        (Some(true), None) => {
            let why = "it keeps addresses for a pod's name, and the CNI call has none";
            return Err(of_pod.refused(STICKY, why.into()));
        }
        _ => None,
    };
    Ok(Choice {
        v4: pools(own.v4, shared.v4),
        v6: pools(own.v6, shared.v6),
        addresses: own.addresses,
        sticky,
    })
}

/// The annotations of a pod or namespace.
struct Annotated<'a> {
    of: String,
    annotations: &'a Annotations,
    allowed: &'static [&'static str],
}

/// What they say.
#[derive(Default)]
struct Said {
    pools: Option<Pools>,
    v4: Option<Pools>,
    v6: Option<Pools>,
    addresses: Vec<IpAddr>,
    sticky: Option<bool>,
}

impl Annotated<'_> {
    fn read(&self) -> Result<Said, Error> {
        let mut said = Said::default();
        let ours = self.annotations.iter().filter(|(key, _)| key.starts_with(ANNOTATION_PREFIX));
        for (key, value) in ours {
            let refused = |why| self.refused(key, why);
            let pools = || {
                let origin = format!("annotation {key} of {}", self.of);
                let of_family = key != POOL;
                let chosen = |names| Pools { names, origin: Some(origin), of_family };
                pools(value).map(chosen).map_err(refused)
            };
            match self.allowed.iter().copied().find(|allowed| allowed == key) {
                Some(POOL) => said.pools = Some(pools()?),
                Some(POOL_IPV4) => said.v4 = Some(pools()?),
                Some(POOL_IPV6) => said.v6 = Some(pools()?),
                Some(IPS) => said.addresses = addresses(value).map_err(refused)?,
                Some(_) => said.sticky = Some(truth(value).map_err(refused)?),
                None if OF_PODS.contains(&key.as_str()) => {
                    return Err(refused("it is for pods only".into()));
                }
                None => {
                    let known = self.allowed.join(", ");
                    return Err(refused(format!("podwire does not know it; it knows {known}")));
                }
            }
        }
        Ok(said)
    }

    fn refused(&self, key: &str, why: String) -> Error {
        let value = self.annotations.get(key).cloned().unwrap_or_default();
        Error::Annotation { of: self.of.clone(), key: shown_key(key), value, why }
    }
}

fn pools(value: &str) -> Result<Vec<String>, String> {
    let names: Vec<String> = value.split(',').map(|name| name.trim().to_owned()).collect();
    check_pools(&names)?;
    Ok(names)
}

/// Whether these can be a list of pools.
pub(crate) fn check_pools(names: &[String]) -> Result<(), String> {
    if names.is_empty() {
        return Err("at least one pool is needed".into());
    }
    let mut seen = BTreeSet::new();
    for name in names {
        if name.is_empty() {
            return Err("a name is missing; write pools as in blue,red".into());
        }
        if !is_label(name) {
            let name = shown(name);
            return Err(format!(
                "{name} is no name of a pool: at most 63 of a-z, 0-9 and -, a letter or digit at \
                 both ends"
            ));
        }
        if !seen.insert(name) {
            return Err(format!("{name} is named twice"));
        }
    }
    Ok(())
}

/// RFC 1123, section 2.1, in lower case.
fn is_label(name: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    bytes.len() <= 63
        && bytes.iter().all(|byte| alphanumeric(byte) || *byte == b'-')
        && bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
}

fn addresses(value: &str) -> Result<Vec<IpAddr>, String> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for text in value.split(',').map(str::trim) {
        let address: IpAddr = text.parse().map_err(|_| {
            format!("{} is no address; write addresses as in 10.1.0.5,fd00:1::5", shown(text))
        })?;
        if let Some(first) = addresses.iter().find(|one| one.is_ipv4() == address.is_ipv4()) {
            return Err(format!("{first} and {address} are of one family; a pod has one of each"));
        }
        addresses.push(address);
    }
    Ok(addresses)
}

fn truth(value: &str) -> Result<bool, String> {
    match value {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("it is neither true nor false".into()),
    }
}

/// A value in quotes, and no more of it than serves.
pub(crate) fn shown(value: &str) -> String {
    match value.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}..", &value[..end]),
        None => format!("{value:?}"),
    }
}

fn shown_key(key: &str) -> String {
    let plain = key.chars().all(|char| char.is_ascii_graphic()) && key.len() <= 2 * SHOWN;
    if plain { key.to_owned() } else { shown(key) }
}

#[cfg(test)]
mod tests;

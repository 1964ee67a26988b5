//! What the agent keeps on disk: one file, with the tables of the addresses and its own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use ipnetwork::IpNetwork;
use podwire_api::{Endpoint, EndpointId, NodeName, Policy, Repair};
use podwire_datapath::abi::identity::HOST;
use podwire_ipam::durable::{self, Change, FileStore, Ipam, Recovered, Store};

use crate::Error;
use crate::error::Source;

/// The addresses and the agent's own tables. Changes that are begun while others are being synced
/// reach the disk together with those that come meanwhile, as one transaction.
pub(crate) type Records = Ipam<FileStore>;

/// `<container id>/<ifname>` to the endpoint as JSON, the API's own form: readable with any tool,
/// and fields can be added without a migration.
const ENDPOINTS: &str = "endpoints";
/// `<container id>/<ifname>` to the endpoint's policy as JSON, the API's own form.
const POLICIES: &str = "policies";
/// A prefix to the identity that is behind it, in digits. Whatever the boot.
const IDENTITIES: &str = "identities";
/// Whose the file is, and what it began its life with.
const NODE: &str = "node";

/// Precedes the names of settings in [`NODE`].
const SETTING: &str = "setting.";

const FORMAT: &str = "2";

/// The prefixes that a start was given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PodCidrs {
    pub(crate) given: Vec<IpNetwork>,
    /// Those of earlier starts that were still held then.
    pub(crate) given_up: Vec<IpNetwork>,
}

/// What [`open`] found.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) ipam: Records,
    pub(crate) endpoints: Vec<Endpoint>,
    /// The endpoints' policies, of those that have one.
    pub(crate) policies: BTreeMap<EndpointId, Policy>,
    /// Who was said to be behind prefixes.
    pub(crate) identities: BTreeMap<IpNetwork, u32>,
    /// The prefixes that the last start was given.
    pub(crate) options: PodCidrs,
    /// The pools that are made of blocks.
    pub(crate) cluster_pools: BTreeSet<String>,
    /// What was set while an agent ran.
    pub(crate) settings: BTreeMap<String, String>,
    /// What belonged to another boot and was dropped, and what else is worth telling.
    pub(crate) repairs: Vec<Repair>,
    /// Whether endpoints and leases are to be taken from the kernel: the file is new, since there was none
    /// or a damaged one, and no start has come so far as to record what the kernel has.
    pub(crate) is_new: bool,
}

/// Opens or creates the file. What another boot has left of endpoints and leases is dropped: its links,
/// maps and namespaces went with that boot. A file that is damaged is set aside, and an empty one takes
/// its place.
pub(crate) fn open(path: &Path, node: &NodeName, boot_id: &str) -> Result<Opened, Error> {
    let damage = match open_whole(path, node, boot_id) {
        Err(error @ Error::StoreDamaged { .. }) => error,
        other => return other,
    };
    let aside = set_aside(path)?;
    tracing::error!(
        error = crate::error::chain(&damage),
        aside = %aside.display(),
        "the database is set aside, and rebuilt from what the kernel has"
    );
    let mut opened = open_whole(path, node, boot_id)?;
    opened.repairs.push(Repair {
        object: path.display().to_string(),
        found: crate::error::chain(&damage),
        done: format!(
            "set aside as {}; endpoints, their leases, identities and policies are taken from the kernel, but for \
             the names of pods and networks; pools made by hand, reservations, sticky names and settings are lost",
            aside.display()
        ),
    });
    Ok(opened)
}

/// The change that records an endpoint.
pub(crate) fn put(endpoint: &Endpoint) -> Result<Change, Error> {
    let json = serde_json::to_vec(endpoint).map_err(|error| Error::Store {
        operation: "encode an endpoint",
        path: PathBuf::new(),
        source: error.into(),
    })?;
    Ok(Change::put(ENDPOINTS, endpoint.id.to_string(), json))
}

/// The change that forgets an endpoint.
pub(crate) fn remove(id: &EndpointId) -> Change {
    Change::remove(ENDPOINTS, id.to_string())
}

/// The change that records an endpoint's policy.
pub(crate) fn put_policy(id: &EndpointId, policy: &Policy) -> Result<Change, Error> {
    let json = serde_json::to_vec(policy).map_err(|error| Error::Store {
        operation: "encode a policy",
        path: PathBuf::new(),
        source: error.into(),
    })?;
    Ok(Change::put(POLICIES, id.to_string(), json))
}

/// The change that forgets an endpoint's policy.
pub(crate) fn remove_policy(id: &EndpointId) -> Change {
    Change::remove(POLICIES, id.to_string())
}

/// The change that records who is behind a prefix.
pub(crate) fn put_identity(prefix: IpNetwork, identity: u32) -> Change {
    Change::put(IDENTITIES, prefix.to_string(), identity.to_string())
}

/// The change that forgets who is behind a prefix.
pub(crate) fn remove_identity(prefix: IpNetwork) -> Change {
    Change::remove(IDENTITIES, prefix.to_string())
}

/// The changes that record the prefixes that the agent was started with.
pub(crate) fn put_pod_cidrs(options: &PodCidrs) -> Vec<Change> {
    let list = |cidrs: &[IpNetwork]| {
        let list: Vec<String> = cidrs.iter().map(ToString::to_string).collect();
        list.join(",")
    };
    vec![
        Change::put(NODE, "pod-cidrs", list(&options.given)),
        Change::put(NODE, "given-up", list(&options.given_up)),
    ]
}

/// The change that records which pools are made of blocks.
pub(crate) fn put_cluster_pools(names: &BTreeSet<String>) -> Change {
    let list: Vec<&str> = names.iter().map(String::as_str).collect();
    Change::put(NODE, "cluster-pools", list.join(","))
}

/// The change that records a setting.
pub(crate) fn put_setting(name: &str, value: &str) -> Change {
    Change::put(NODE, format!("{SETTING}{name}"), value)
}

/// The change that forgets a setting.
pub(crate) fn remove_setting(name: &str) -> Change {
    Change::remove(NODE, format!("{SETTING}{name}"))
}

/// The change that says that endpoints and leases are recorded, whatever the kernel had of them.
pub(crate) fn put_restored(boot_id: &str) -> Change {
    Change::put(NODE, "restored", boot_id)
}

/// Whether a process has the file open, damaged or not.
pub(crate) fn is_locked(path: &Path) -> Result<bool, Error> {
    match FileStore::open(path) {
        Ok(_) => Ok(false),
        Err(error) if error.is_locked() => Ok(true),
        Err(error) if error.is_damaged() => Ok(false),
        Err(error) => Err(of_file(path)(error)),
    }
}

/// One record of the table of endpoints.
pub(crate) fn decode(id: &str, json: &[u8]) -> Result<Endpoint, Source> {
    serde_json::from_slice(json).map_err(|error| format!("endpoint {id}: {error}").into())
}

fn open_whole(path: &Path, node: &NodeName, boot_id: &str) -> Result<Opened, Error> {
    let mut store = FileStore::open(path).map_err(of_file(path))?;
    let damaged = |source: Source| Error::StoreDamaged { path: path.to_owned(), source };
    let own = read_texts(&mut store, NODE).map_err(of_file(path))?;
    let value =
        |key: &str| own.iter().find(|(found, _)| found == key).map(|(_, value)| value.as_str());
    if let Some(found) = value("format").filter(|format| *format != FORMAT) {
        let (path, found) = (path.to_owned(), found.to_owned());
        return Err(Error::StoreFormat { path, found, known: FORMAT });
    }
    let same_boot = value("boot-id").is_some_and(|found| found == boot_id);
    let is_new = value("restored") != Some(boot_id);
    let mut changes = vec![
        Change::put(NODE, "format", FORMAT),
        Change::put(NODE, "name", node.as_str()),
        Change::put(NODE, "boot-id", boot_id),
    ];
    let (mut endpoints, mut repairs) = (Vec::new(), Vec::new());
    for (id, json) in store.load(ENDPOINTS).map_err(of_file(path))? {
        let id = String::from_utf8_lossy(&id).into_owned();
        if same_boot {
            endpoints.push(decode(&id, &json).map_err(&damaged)?);
        } else {
            changes.push(Change::remove(ENDPOINTS, id.as_str()));
            repairs.push(of_another_boot(format!("endpoint {id}"), "record dropped"));
        }
    }
    let mut policies = BTreeMap::new();
    for (id, json) in store.load(POLICIES).map_err(of_file(path))? {
        let id = String::from_utf8_lossy(&id).into_owned();
        match endpoints.iter().find(|endpoint: &&Endpoint| endpoint.id.to_string() == id) {
            Some(endpoint) => {
                let policy = serde_json::from_slice(&json)
                    .map_err(|error| damaged(format!("policy of {id}: {error}").into()))?;
                policies.insert(endpoint.id.clone(), policy);
            }
            // It went with its endpoint.
            None => changes.push(Change::remove(POLICIES, id)),
        }
    }
    let mut identities = BTreeMap::new();
    for (prefix, identity) in read_texts(&mut store, IDENTITIES).map_err(of_file(path))? {
        let (Ok(network), Ok(number)) = (prefix.parse(), identity.parse()) else {
            return Err(damaged(format!("identity of {prefix}: {identity}").into()));
        };
        if number == HOST {
            // Earlier versions took it.
            changes.push(Change::remove(IDENTITIES, prefix.as_str()));
            let (object, done) = (format!("identity of {prefix}"), "record dropped".into());
            let found = format!("{HOST}, which only the node's own addresses have");
            repairs.push(Repair { object, found, done });
            continue;
        }
        identities.insert(network, number);
    }
    if let Some(found) = value("name")
        && found != node.as_str()
        && !endpoints.is_empty()
    {
        return Err(Error::StoreOfAnotherNode {
            path: path.to_owned(),
            found: found.to_owned(),
            node: node.to_string(),
            endpoints: endpoints.len(),
        });
    }
    let list = |key: &str| {
        let list = value(key).unwrap_or_default();
        list.split(',').filter_map(|cidr| cidr.parse().ok()).collect()
    };
    let options = PodCidrs { given: list("pod-cidrs"), given_up: list("given-up") };
    let names = value("cluster-pools").unwrap_or_default().split(',');
    let cluster_pools = names.filter(|name| !name.is_empty()).map(str::to_owned).collect();
    let setting = |(key, value): &(String, String)| {
        key.strip_prefix(SETTING).map(|name| (name.to_owned(), value.clone()))
    };
    let settings = own.iter().filter_map(setting).collect();
    store.commit(&changes).map_err(of_file(path))?;
    let (ipam, Recovered { dropped, .. }) =
        Ipam::open(store, boot_id).map_err(|error| of_ipam(path, error))?;
    for lease in dropped {
        let done = format!("dropped, {} free", lease.addresses);
        repairs.push(of_another_boot(format!("lease of {}", lease.owner), &done));
    }
    Ok(Opened {
        ipam,
        endpoints,
        policies,
        identities,
        options,
        cluster_pools,
        settings,
        repairs,
        is_new,
    })
}

fn read_texts(
    store: &mut FileStore,
    table: &str,
) -> Result<Vec<(String, String)>, durable::FileStoreError> {
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let entries = store.load(table)?;
    Ok(entries.into_iter().map(|(key, value)| (text(key), text(value))).collect())
}

fn of_another_boot(object: String, done: &str) -> Repair {
    let found = "recorded before the machine's last start".into();
    Repair { object, found, done: done.to_owned() }
}

/// Moves a damaged file to a name that says when, and that nothing has yet.
pub(crate) fn set_aside(path: &Path) -> Result<PathBuf, Error> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let aside = (0..)
        .map(|more: u64| {
            let mut name = path.as_os_str().to_owned();
            name.push(format!(".damaged-{}", since + more));
            PathBuf::from(name)
        })
        .find(|aside| !aside.exists())
        .unwrap_or_default();
    fs::rename(path, &aside).map_err(|source| Error::Folder {
        operation: "set aside",
        path: path.to_owned(),
        source,
    })?;
    Ok(aside)
}

fn of_file(path: &Path) -> impl Fn(durable::FileStoreError) -> Error + use<> {
    let path = path.to_owned();
    move |error| {
        let path = path.clone();
        if error.is_locked() {
            Error::StoreLocked { path }
        } else if error.is_damaged() {
            Error::StoreDamaged { path, source: error.into() }
        } else {
            Error::Store { operation: "open the records", path, source: error.into() }
        }
    }
}

fn of_ipam(path: &Path, error: durable::Error) -> Error {
    let path = path.to_owned();
    if let durable::Error::Format { found, known } = error {
        return Error::StoreFormat { path, found, known };
    }
    if error.is_damaged() {
        return Error::StoreDamaged { path, source: error.into() };
    }
    Error::Store { operation: "read the leases", path, source: error.into() }
}

#[cfg(test)]
mod tests {
    use podwire_api::{Delivery, Mac};
    use podwire_ipam::{Owner, PoolConfig, Request, Time};

    use super::*;

    const NOW: Time = Time::from_secs(1000);

    fn node() -> NodeName {
        "n1".parse().unwrap()
    }

    fn endpoint(container: &str) -> Endpoint {
        let id = EndpointId::new(container, "eth0").unwrap();
        Endpoint {
            host_link: id.host_link(),
            id,
            ifindex: 7,
            mac: Mac([2, 0, 0, 0, 0, 1]),
            host_mac: Mac([2, 0, 0, 0, 0, 2]),
            addresses: vec!["10.0.0.2".parse().unwrap()],
            slot: 0,
            delivery: Delivery::Peer,
            created: 1,
            network: None,
            pod: None,
            interface: podwire_api::Interface::Own,
            identity: podwire_api::UNMANAGED_IDENTITY,
        }
    }

    fn database() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("podwire.redb");
        (folder, path)
    }

    fn add(ipam: &Records, container: &str) {
        let changes = vec![put(&endpoint(container)).unwrap()];
        ipam.begin(changes).unwrap().wait().unwrap();
    }

    /// A pool with one confirmed lease, and an endpoint.
    fn fill(ipam: &Records) -> Owner {
        let pool = PoolConfig::new("default", vec!["10.0.0.0/24".parse().unwrap()]);
        ipam.add_pool(&pool).unwrap();
        ipam.reserve("10.0.0.9".parse().unwrap(), "printer").unwrap();
        let owner = Owner::new("a", "eth0");
        ipam.allocate(&owner, &Request::default().sticky("shop/web-0"), NOW).unwrap();
        ipam.begin_confirm(&owner, vec![put(&endpoint("a")).unwrap()]).unwrap().wait().unwrap();
        owner
    }

    #[test]
    fn records_survive_a_restart() {
        let (_folder, path) = database();
        let opened = open(&path, &node(), "boot-1").unwrap();
        assert_eq!(opened.endpoints, []);
        add(&opened.ipam, "a");
        add(&opened.ipam, "b");
        let gone = vec![remove(&endpoint("a").id), remove(&endpoint("never").id)];
        opened.ipam.begin(gone).unwrap().wait().unwrap();
        let given = vec!["10.0.0.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()];
        let options = PodCidrs { given, given_up: vec!["10.1.0.0/24".parse().unwrap()] };
        opened.ipam.begin(put_pod_cidrs(&options)).unwrap().wait().unwrap();
        let set = ["timeout.icmp", "timeout.other"].map(|name| put_setting(name, "7"));
        opened.ipam.begin(set.to_vec()).unwrap().wait().unwrap();
        opened.ipam.begin(vec![remove_setting("timeout.other")]).unwrap().wait().unwrap();
        drop(opened.ipam);

        let opened = open(&path, &node(), "boot-1").unwrap();
        assert_eq!(opened.endpoints, [endpoint("b")]);
        assert_eq!((opened.repairs, opened.options), (Vec::new(), options));
        assert_eq!(opened.settings, [("timeout.icmp".to_owned(), "7".to_owned())].into());
    }

    #[test]
    fn another_boot_drops_what_died_and_keeps_what_was_meant_to_stay() {
        let (_folder, path) = database();
        let opened = open(&path, &node(), "boot-1").unwrap();
        let owner = fill(&opened.ipam);
        drop(opened.ipam);

        let opened = open(&path, &node(), "boot-2").unwrap();
        assert_eq!(opened.endpoints, []);
        let told: Vec<&str> = opened.repairs.iter().map(|one| one.object.as_str()).collect();
        assert_eq!(told, ["endpoint a/eth0", "lease of a/eth0"]);
        assert_eq!(opened.ipam.lease(&owner).unwrap(), None);
        assert_eq!(opened.ipam.reservations().unwrap().len(), 1);
        assert_eq!(opened.ipam.stickies().unwrap()[0].0, "shop/web-0");
        drop(opened.ipam);
        assert_eq!(open(&path, &node(), "boot-2").unwrap().repairs, []);
    }

    #[test]
    fn the_nodes_identity_is_on_record_of_nobody() {
        let (_folder, path) = database();
        let opened = open(&path, &node(), "boot-1").unwrap();
        let (one, other) = ("192.0.2.7/32".parse().unwrap(), "192.0.2.0/24".parse().unwrap());
        let told = vec![put_identity(one, HOST), put_identity(other, 700)];
        opened.ipam.begin(told).unwrap().wait().unwrap();
        drop(opened.ipam);
        let opened = open(&path, &node(), "boot-1").unwrap();
        assert_eq!(opened.identities, BTreeMap::from([(other, 700)]));
        assert_eq!(opened.repairs[0].object, "identity of 192.0.2.7/32");
        drop(opened.ipam);
        assert_eq!(open(&path, &node(), "boot-1").unwrap().repairs, []);
    }

    #[test]
    fn a_second_owner_is_refused() {
        let (_folder, path) = database();
        let _first = open(&path, &node(), "boot-1").unwrap();
        let second = open(&path, &node(), "boot-1").unwrap_err();
        assert!(second.is_already_running(), "{second:?}");
        assert!(is_locked(&path).unwrap());
    }

    #[test]
    fn a_damaged_file_is_set_aside_and_told() {
        let (folder, path) = database();
        let opened = open(&path, &node(), "boot-1").unwrap();
        fill(&opened.ipam);
        drop(opened.ipam);
        let whole = fs::read(&path).unwrap();
        let mut rebuilt = 0;
        // Whatever is hit, the records are whole or the file is set aside: no panic, and never an empty
        // store that says nothing.
        for page in 0..whole.len() / 4096 {
            let mut bytes = whole.clone();
            for byte in &mut bytes[page * 4096..page * 4096 + 512] {
                *byte ^= 0xa5;
            }
            let path = folder.path().join(format!("{page}.redb"));
            fs::write(&path, &bytes).unwrap();
            let opened = open(&path, &node(), "boot-1").unwrap();
            if opened.repairs.is_empty() {
                assert_eq!((opened.endpoints.len(), opened.ipam.leases().unwrap().len()), (1, 1));
                continue;
            }
            rebuilt += 1;
            assert_eq!(opened.endpoints, []);
            let repair = &opened.repairs[0];
            let aside = repair.done.split(' ').find(|word| word.contains(".damaged-")).unwrap();
            assert_eq!(fs::read(aside.trim_end_matches(';')).unwrap(), bytes);
        }
        assert!(rebuilt > 0, "no page of the file mattered");
        fs::write(&path, b"this is no database").unwrap();
        assert!(!open(&path, &node(), "boot-1").unwrap().repairs.is_empty());
    }

    #[test]
    fn the_kernel_is_asked_until_it_was_recorded_what_it_has() {
        let (_folder, path) = database();
        // However often a start gets no further.
        for _ in 0..2 {
            assert!(open(&path, &node(), "boot-1").unwrap().is_new);
        }
        let opened = open(&path, &node(), "boot-1").unwrap();
        opened.ipam.begin(vec![put_restored("boot-1")]).unwrap().wait().unwrap();
        drop(opened.ipam);
        assert!(!open(&path, &node(), "boot-1").unwrap().is_new);
    }

    #[test]
    fn another_version_is_refused_and_nothing_is_set_aside() {
        let (folder, path) = database();
        let opened = open(&path, &node(), "boot-1").unwrap();
        opened.ipam.begin(vec![Change::put(NODE, "format", "3")]).unwrap().wait().unwrap();
        drop(opened.ipam);
        let error = open(&path, &node(), "boot-1").unwrap_err();
        assert!(matches!(error, Error::StoreFormat { .. }), "{error:?}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_renamed_node_does_not_adopt_endpoints() {
        let (_folder, path) = database();
        let opened = open(&path, &node(), "boot-1").unwrap();
        add(&opened.ipam, "a");
        drop(opened.ipam);
        let error = open(&path, &"n2".parse().unwrap(), "boot-1").unwrap_err();
        assert!(matches!(error, Error::StoreOfAnotherNode { .. }), "{error:?}");
        assert!(error.hint().unwrap().contains("--node-name n1"));
        // After a reboot nothing is left that could be confused.
        open(&path, &"n2".parse().unwrap(), "boot-2").unwrap();
    }
}

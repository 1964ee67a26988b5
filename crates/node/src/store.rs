use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use podwire_api::{Endpoint, EndpointId, NodeName, Repair};
use redb::backends::FileBackend;
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};

use crate::Error;
use crate::error::Source;
use crate::worker::{Begun, Worker};

const META: TableDefinition<'_, &str, &str> = TableDefinition::new("meta");
/// `<container id>/<ifname>` to the endpoint as JSON, the API's own form: readable with any tool,
/// and fields can be added without a migration.
const ENDPOINTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("endpoints");

const FORMAT: &str = "1";

/// redb's default is 1 GiB. The whole database of a full node is a few hundred KiB.
const CACHE: usize = 1 << 20;

/// The agent's durable records, in one redb file that this process alone may open.
///
/// Writes that arrive while one is being synced are committed together, as one transaction; each
/// caller waits until its own has reached the disk.
#[derive(Debug)]
pub(crate) struct Store {
    worker: Worker<Change, Result<(), Arc<Error>>>,
}

/// What [`Store::open`] found.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) store: Store,
    pub(crate) records: Vec<Endpoint>,
    /// Records of another boot, which were dropped.
    pub(crate) repairs: Vec<Repair>,
}

#[derive(Debug)]
enum Change {
    Put(EndpointId, Vec<u8>),
    Delete(EndpointId),
}

impl Store {
    /// Opens or creates the file. What another boot has left in it is dropped: its links, maps and
    /// namespaces went with that boot.
    pub(crate) fn open(path: &Path, node: &NodeName, boot_id: &str) -> Result<Opened, Error> {
        let database = open_database(path)?;
        let failed = failure("read the records", path);
        let (meta, raw) = read(&database).map_err(&failed)?;
        let damaged = |source: Source| Error::StoreDamaged { path: path.to_owned(), source };
        if let Some(format) = meta.get("format").filter(|format| *format != FORMAT) {
            let why = format!("format {format}, this version writes {FORMAT}");
            return Err(damaged(why.into()));
        }
        let same_boot = meta.get("boot-id").is_some_and(|found| found == boot_id);
        let mut records = Vec::with_capacity(raw.len());
        let mut repairs = Vec::new();
        for (id, json) in &raw {
            if same_boot {
                records.push(decode(id, json).map_err(&damaged)?);
            } else {
                repairs.push(Repair {
                    object: format!("endpoint {id}"),
                    found: "recorded before the machine's last start".into(),
                    done: "record dropped, addresses free".into(),
                });
            }
        }
        if let Some(found) = meta.get("node")
            && found != node.as_str()
            && !records.is_empty()
        {
            return Err(Error::StoreOfAnotherNode {
                path: path.to_owned(),
                found: found.clone(),
                node: node.to_string(),
                endpoints: records.len(),
            });
        }
        begin_boot(&database, node, boot_id, same_boot)
            .map_err(failure("write the node's name and boot id", path))?;

        let write = failure("write endpoints", path);
        let worker = Worker::start("podwire-store", move |changes| {
            commit(&database, &changes).map_err(|source| Arc::new(write(source)))
        })
        .map_err(|source| Error::Folder {
            operation: "start a thread for",
            path: path.to_owned(),
            source,
        })?;
        Ok(Opened { store: Self { worker }, records, repairs })
    }

    /// Records an endpoint; it is on the disk when this returns.
    pub(crate) fn put(&self, endpoint: &Endpoint) -> Result<(), Arc<Error>> {
        self.begin_put(endpoint)?.wait()
    }

    /// Records an endpoint meanwhile.
    pub(crate) fn begin_put(&self, endpoint: &Endpoint) -> Result<Changing, Arc<Error>> {
        let json = serde_json::to_vec(endpoint).map_err(|error| {
            Arc::new(Error::Store {
                operation: "encode an endpoint",
                path: PathBuf::new(),
                source: error.into(),
            })
        })?;
        Ok(Changing(self.worker.begin(Change::Put(endpoint.id.clone(), json))))
    }

    /// Forgets an endpoint; it is gone from the disk when this returns.
    pub(crate) fn delete(&self, id: &EndpointId) -> Result<(), Arc<Error>> {
        self.begin_delete(id).wait()
    }

    /// Forgets an endpoint meanwhile.
    pub(crate) fn begin_delete(&self, id: &EndpointId) -> Changing {
        Changing(self.worker.begin(Change::Delete(id.clone())))
    }
}

/// A change on its way to the disk.
#[must_use]
pub(crate) struct Changing(Begun<Result<(), Arc<Error>>>);

impl Changing {
    /// Waits until it is there.
    pub(crate) fn wait(self) -> Result<(), Arc<Error>> {
        self.0.wait().unwrap_or_else(|| Err(Arc::new(Error::Died("store"))))
    }
}

/// Whether a process has the file open, damaged or not.
pub(crate) fn is_locked(path: &Path) -> Result<bool, Error> {
    match open_database(path) {
        Err(Error::StoreLocked { .. }) => Ok(true),
        Ok(_) | Err(Error::StoreDamaged { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

fn open_database(path: &Path) -> Result<Database, Error> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)
        .map_err(|source| Error::Folder { operation: "open", path: path.to_owned(), source })?;
    // redb verifies every page of this small file now rather than trusting it, and may still panic
    // over one that is damaged in a way it did not think of.
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let backend = FileBackend::new(file)?;
        Database::builder()
            .set_cache_size(CACHE)
            .set_check_integrity_on_open(true)
            .create_with_backend(backend)
    }));
    let path = path.to_owned();
    match opened {
        Ok(Ok(database)) => Ok(database),
        Ok(Err(DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch)) => {
            Err(Error::StoreLocked { path })
        }
        Ok(Err(source)) => Err(Error::StoreDamaged { path, source: source.into() }),
        Err(_) => Err(Error::StoreDamaged { path, source: "redb cannot make sense of it".into() }),
    }
}

type Tables = (BTreeMap<String, String>, Vec<(String, Vec<u8>)>);

fn read(database: &Database) -> Result<Tables, Source> {
    let transaction = database.begin_read()?;
    let mut meta = BTreeMap::new();
    match transaction.open_table(META) {
        Ok(table) => {
            for entry in table.iter()? {
                let (key, value) = entry?;
                meta.insert(key.value().to_owned(), value.value().to_owned());
            }
        }
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok((meta, Vec::new())),
        Err(error) => return Err(error.into()),
    }
    let mut endpoints = Vec::new();
    for entry in transaction.open_table(ENDPOINTS)?.iter()? {
        let (key, value) = entry?;
        endpoints.push((key.value().to_owned(), value.value().to_owned()));
    }
    Ok((meta, endpoints))
}

/// One record of the table of endpoints.
pub(crate) fn decode(id: &str, json: &[u8]) -> Result<Endpoint, Source> {
    serde_json::from_slice(json).map_err(|error| format!("endpoint {id}: {error}").into())
}

fn begin_boot(
    database: &Database,
    node: &NodeName,
    boot_id: &str,
    same_boot: bool,
) -> Result<(), Source> {
    let transaction = database.begin_write()?;
    {
        let mut meta = transaction.open_table(META)?;
        meta.insert("format", FORMAT)?;
        meta.insert("node", node.as_str())?;
        meta.insert("boot-id", boot_id)?;
        let mut endpoints = transaction.open_table(ENDPOINTS)?;
        if !same_boot {
            endpoints.retain(|_, _| false)?;
        }
    }
    transaction.commit()?;
    Ok(())
}

fn commit(database: &Database, changes: &[Change]) -> Result<(), Source> {
    let transaction = database.begin_write()?;
    {
        let mut endpoints = transaction.open_table(ENDPOINTS)?;
        for change in changes {
            match change {
                Change::Put(id, json) => {
                    endpoints.insert(id.to_string().as_str(), json.as_slice())?;
                }
                Change::Delete(id) => {
                    endpoints.remove(id.to_string().as_str())?;
                }
            }
        }
    }
    transaction.commit()?;
    Ok(())
}

fn failure(operation: &'static str, path: &Path) -> impl Fn(Source) -> Error + Send + use<> {
    let path = path.to_owned();
    move |source| Error::Store { operation, path: path.clone(), source }
}

#[cfg(test)]
mod tests {
    use podwire_api::{Delivery, Mac};

    use super::*;

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
        }
    }

    #[test]
    fn records_survive_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("podwire.redb");
        let opened = Store::open(&path, &node(), "boot-1").unwrap();
        assert_eq!(opened.records, []);
        opened.store.put(&endpoint("a")).unwrap();
        opened.store.put(&endpoint("b")).unwrap();
        opened.store.delete(&endpoint("a").id).unwrap();
        opened.store.delete(&endpoint("never").id).unwrap();
        drop(opened.store);

        let opened = Store::open(&path, &node(), "boot-1").unwrap();
        assert_eq!(opened.records, [endpoint("b")]);
        assert_eq!(opened.repairs, []);
    }

    #[test]
    fn another_boot_drops_and_reports() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("podwire.redb");
        let opened = Store::open(&path, &node(), "boot-1").unwrap();
        opened.store.put(&endpoint("a")).unwrap();
        drop(opened.store);

        let opened = Store::open(&path, &node(), "boot-2").unwrap();
        assert_eq!(opened.records, []);
        assert_eq!(opened.repairs.len(), 1);
        assert_eq!(opened.repairs[0].object, "endpoint a/eth0");
        drop(opened.store);
        assert_eq!(Store::open(&path, &node(), "boot-2").unwrap().repairs, []);
    }

    #[test]
    fn concurrent_writes_all_arrive() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("podwire.redb");
        let opened = Store::open(&path, &node(), "boot-1").unwrap();
        std::thread::scope(|scope| {
            for i in 0..64 {
                let store = &opened.store;
                scope.spawn(move || store.put(&endpoint(&format!("c{i}"))).unwrap());
            }
        });
        drop(opened.store);
        assert_eq!(Store::open(&path, &node(), "boot-1").unwrap().records.len(), 64);
    }

    #[test]
    fn a_second_owner_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("podwire.redb");
        let _first = Store::open(&path, &node(), "boot-1").unwrap();
        let second = Store::open(&path, &node(), "boot-1").unwrap_err();
        assert!(second.is_already_running(), "{second:?}");
    }

    #[test]
    fn damaged_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("podwire.redb");
        std::fs::write(&path, b"this is no database").unwrap();
        let error = Store::open(&path, &node(), "boot-1").unwrap_err();
        assert!(matches!(error, Error::StoreDamaged { .. }), "{error:?}");

        std::fs::remove_file(&path).unwrap();
        let opened = Store::open(&path, &node(), "boot-1").unwrap();
        for i in 0..32 {
            opened.store.put(&endpoint(&format!("c{i}"))).unwrap();
        }
        drop(opened.store);
        // Whatever byte is hit, the records are whole or the file is refused: no panic.
        let whole = std::fs::read(&path).unwrap();
        for page in 0..(whole.len() / 4096).min(64) {
            let mut bytes = whole.clone();
            for byte in &mut bytes[page * 4096..page * 4096 + 512] {
                *byte ^= 0xa5;
            }
            let other = folder.path().join(format!("{page}.redb"));
            std::fs::write(&other, &bytes).unwrap();
            match Store::open(&other, &node(), "boot-1") {
                Ok(opened) => assert_eq!(opened.records.len(), 32, "page {page}"),
                Err(Error::StoreDamaged { .. }) => {}
                Err(error) => panic!("page {page}: {error:?}"),
            }
        }
    }

    #[test]
    fn a_renamed_node_does_not_adopt_endpoints() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("podwire.redb");
        let opened = Store::open(&path, &node(), "boot-1").unwrap();
        opened.store.put(&endpoint("a")).unwrap();
        drop(opened.store);
        let error = Store::open(&path, &"n2".parse().unwrap(), "boot-1").unwrap_err();
        assert!(matches!(error, Error::StoreOfAnotherNode { .. }), "{error:?}");
        assert!(error.hint().unwrap().contains("--node-name n1"));
        // After a reboot nothing is left that could be confused.
        Store::open(&path, &"n2".parse().unwrap(), "boot-2").unwrap();
    }
}

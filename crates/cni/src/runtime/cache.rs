use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::folder::{Found, read_up_to};
use super::{Network, Request};
use crate::json::{null_as_default, parse_object};
use crate::types::Object;
use crate::{Args, Attachment, Code, Error, NetworkName};

/// What a runtime remembers of its attachments, from ADD to DEL.
///
/// One file per attachment, `results/<network>-<container id>-<ifname>` in its folder, in the
/// format of the reference library (libcni, kind `cniCacheV1`): what containerd or podman have
/// remembered can be read, and the other way round. Files appear whole or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    folder: PathBuf,
}

/// Where runtimes have their cache.
pub const DEFAULT_CACHE: &str = "/var/lib/cni";

const KIND: &str = "cniCacheV1";

/// The largest file that is read: a configuration, a result, and what a runtime adds.
const MAX_LEN: usize = 8 * 1024 * 1024;

/// What is remembered of one attachment.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Entry {
    /// The network.
    pub network: NetworkName,
    /// The parameters of the ADD.
    pub request: Request,
    /// The network's configuration at that time; [`Network::parse`] reads it.
    pub config: Vec<u8>,
    /// The result of the ADD.
    pub result: Option<Value>,
}

impl Cache {
    /// A cache in the given folder; [`DEFAULT_CACHE`] is where the node's runtime has its own.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// What is remembered of an attachment. Of a file as the reference library wrote it before
    /// 0.8, which has the result only, the rest is empty.
    ///
    /// # Errors
    ///
    /// Code 5 if the file cannot be read, code 6 if it does not hold what its name says.
    pub fn entry(
        &self,
        network: &NetworkName,
        attachment: &Attachment,
    ) -> Result<Option<Entry>, Error> {
        let file = self.file(network, attachment);
        let bytes = match read_up_to(&file, MAX_LEN) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("read", &file, &error)),
        };
        let of_file = |error: &Error| {
            Error::new(error.code(), format!("{}: {}", file.display(), error.msg()))
                .with_details(error.details())
        };
        if let Ok(result) = parse_object(&bytes)
            && !result.contains_key("kind")
        {
            let request = Request::new(attachment.container_id.clone(), attachment.ifname.clone());
            let (network, result) = (network.clone(), Some(Value::Object(result)));
            return Ok(Some(Entry { network, request, config: Vec::new(), result }));
        }
        let entry = Entry::parse(&bytes).map_err(|error| of_file(&error))?;
        if !entry.is_of(network, attachment) {
            // a-b + c and a + b-c have the same file in this format.
            let msg = format!("it is about {} in {}", entry.request.attachment(), entry.network);
            return Err(of_file(&undecodable(msg)));
        }
        Ok(Some(entry))
    }

    /// Everything that is remembered, by the files' names. Files of other kinds are told as errors
    /// with the file, and are no obstacle.
    ///
    /// # Errors
    ///
    /// Code 5 if the folder cannot be read.
    pub fn entries(&self) -> Result<Vec<Found<Entry>>, Error> {
        let folder = self.results();
        let listed = match fs::read_dir(&folder) {
            Ok(listed) => listed,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("read", &folder, &error)),
        };
        let mut files = Vec::new();
        for entry in listed {
            let entry = entry.map_err(|error| failed("read", &folder, &error))?;
            // Ours that are being written, and what others hide.
            if !entry.file_name().as_encoded_bytes().starts_with(b".") {
                files.push(entry.path());
            }
        }
        files.sort();
        let found = files.into_iter().filter_map(|file| {
            let content = match read_up_to(&file, MAX_LEN) {
                Ok(bytes) => Entry::parse(&bytes),
                // Removed since it was listed, by another attachment's DEL.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
                Err(error) => Err(failed("read", &file, &error)),
            };
            Some(Found { file, content })
        });
        Ok(found.collect())
    }

    /// Remembers an attachment.
    ///
    /// # Errors
    ///
    /// Code 5 if it cannot be written.
    pub fn store(&self, entry: &Entry) -> Result<(), Error> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let folder = self.results();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(|error| failed("make", &folder, &error))?;
        let file = self.file(&entry.network, &entry.request.attachment());
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let draft = folder.join(format!(".{}-{count}.draft", std::process::id()));
        let write = || -> io::Result<()> {
            let mut open =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
            open.write_all(&entry.to_json())?;
            open.sync_all()?;
            fs::rename(&draft, &file)?;
            File::open(&folder)?.sync_all()
        };
        write().map_err(|error| {
            // Nothing is left to do if it stays: nobody looks at hidden files.
            let _ = fs::remove_file(&draft);
            failed("write", &file, &error)
        })
    }

    /// Forgets an attachment; one that is not remembered is forgotten already. A file that cannot
    /// be read goes, too; one that is about another attachment stays.
    ///
    /// # Errors
    ///
    /// Code 5 if the file cannot be removed.
    pub fn remove(&self, network: &NetworkName, attachment: &Attachment) -> Result<(), Error> {
        let file = self.file(network, attachment);
        if let Ok(bytes) = read_up_to(&file, MAX_LEN)
            && let Ok(entry) = Entry::parse(&bytes)
            && !entry.is_of(network, attachment)
        {
            return Ok(());
        }
        match fs::remove_file(&file) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed("remove", &file, &error)),
        }
    }

    fn results(&self) -> PathBuf {
        self.folder.join("results")
    }

    /// The names' characters make it a file of this folder, whatever they are.
    fn file(&self, network: &NetworkName, attachment: &Attachment) -> PathBuf {
        let Attachment { container_id, ifname } = attachment;
        self.results().join(format!("{network}-{container_id}-{ifname}"))
    }
}

impl Entry {
    /// What is to be remembered of an ADD.
    #[must_use]
    pub fn new(network: &Network, request: &Request, result: Value) -> Self {
        Self {
            network: network.name().clone(),
            request: request.clone(),
            config: network.text().to_vec(),
            result: Some(result),
        }
    }

    fn is_of(&self, network: &NetworkName, attachment: &Attachment) -> bool {
        self.network == *network && self.request.attachment() == *attachment
    }

    /// Reads what a file of the cache holds.
    ///
    /// # Errors
    ///
    /// Code 6 if it is not of this format.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() > MAX_LEN {
            return Err(undecodable(format!("it is longer than {MAX_LEN} bytes")));
        }
        let undecodable = |error: &dyn std::error::Error| {
            undecodable("it is no record of an attachment").with_source(error)
        };
        let object = parse_object(bytes).map_err(|error| undecodable(&error))?;
        let record = Record::deserialize(Value::Object(object)).map_err(|e| undecodable(&e))?;
        if record.kind != KIND {
            let msg = format!("kind is {:?}, not {KIND:?}", record.kind);
            return Err(Error::new(Code::DECODING_FAILURE, msg));
        }
        let args = Args::from_pairs(record.cni_args).map_err(|error| undecodable(&error))?;
        Ok(Self {
            network: record.network_name.parse().map_err(|error| undecodable(&error))?,
            request: Request {
                container_id: record.container_id.parse().map_err(|e| undecodable(&e))?,
                netns: record.netns.parse().ok(),
                ifname: record.if_name.parse().map_err(|error| undecodable(&error))?,
                args,
                capabilities: record.capability_args,
            },
            config: BASE64.decode(record.config).map_err(|error| undecodable(&error))?,
            result: record.result.map(Value::Object),
        })
    }

    /// What a file of the cache holds.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let request = &self.request;
        let pairs = request.args.iter();
        let record = Record {
            kind: KIND.to_owned(),
            container_id: request.container_id.to_string(),
            config: BASE64.encode(&self.config),
            if_name: request.ifname.to_string(),
            network_name: self.network.to_string(),
            netns: request.netns.as_ref().map(ToString::to_string).unwrap_or_default(),
            cni_args: pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
            capability_args: request.capabilities.clone(),
            result: self.result.as_ref().and_then(Value::as_object).cloned(),
        };
        serde_json::to_vec(&record)
            .unwrap_or_else(|_| unreachable!("text, lists and objects are written as JSON"))
    }
}

/// The reference library's `cachedInfo`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    kind: String,
    container_id: String,
    #[serde(default, deserialize_with = "null_as_default")]
    config: String,
    if_name: String,
    network_name: String,
    #[serde(
        default,
        deserialize_with = "null_as_default",
        skip_serializing_if = "String::is_empty"
    )]
    netns: String,
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    cni_args: Vec<(String, String)>,
    #[serde(
        default,
        deserialize_with = "null_as_default",
        skip_serializing_if = "Object::is_empty"
    )]
    capability_args: Object,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    result: Option<Object>,
}

fn undecodable(msg: impl Into<String>) -> Error {
    Error::new(Code::DECODING_FAILURE, msg)
}

fn failed(what: &str, place: &Path, error: &io::Error) -> Error {
    Error::new(Code::IO_FAILURE, format!("cannot {what} {}", place.display())).with_source(error)
}

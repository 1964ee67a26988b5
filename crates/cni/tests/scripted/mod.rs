//! A folder of plugins that answer what a test tells them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use podwire_cni::runtime::{Cache, Runtime};
use serde_json::Value;
use tempfile::TempDir;

pub(crate) struct Plugins(TempDir);

impl Plugins {
    pub(crate) fn new(names: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plugins/scripted.sh");
        for name in names {
            symlink(&script, folder.path().join(name)).unwrap();
        }
        Self(folder)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn runtime(&self) -> Runtime {
        Runtime::new([self.path().to_owned()], Cache::new(self.path().join("cache")))
    }

    /// Puts a plugin's answer, `<plugin>.<command>.result` or `.error`.
    pub(crate) fn put(&self, file: &str, content: &Value) {
        self.put_text(file, &content.to_string());
    }

    pub(crate) fn put_text(&self, file: &str, content: &str) {
        let file = self.path().join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, content).unwrap();
    }

    /// The calls since the last time, a line each.
    pub(crate) fn take_calls(&self) -> String {
        let file = self.path().join("calls");
        let calls = fs::read_to_string(&file).unwrap_or_default();
        let _ = fs::remove_file(file);
        calls
    }

    pub(crate) fn input(&self, plugin: &str, command: &str) -> Value {
        let file = self.path().join(format!("{plugin}.{command}.stdin"));
        serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
    }

    pub(crate) fn environment(&self, plugin: &str, command: &str) -> String {
        fs::read_to_string(self.path().join(format!("{plugin}.{command}.env"))).unwrap()
    }
}

//! The network configuration.

use std::collections::BTreeMap;

use podwire_cni::{NetworkName, SpecVersion};
use serde::Serialize;
use serde_json::Value;

/// A runtime takes the first file in the order of names: so one that is ahead of most.
pub(super) const FILE_NAME: &str = "05-podwire.conflist";

/// The plugin that makes a configuration podwire's.
pub(super) const PLUGIN: &str = "podwire-cni";

/// What becomes a configuration.
#[derive(Debug)]
pub(super) struct Conflist<'a> {
    pub(super) version: SpecVersion,
    pub(super) network: &'a NetworkName,
    pub(super) run_dir: &'a str,
    /// The plugins after podwire's.
    pub(super) chain: &'a [String],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct File<'a> {
    cni_version: &'a str,
    name: &'a str,
    plugins: Vec<Entry<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry<'a> {
    r#type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_dir: Option<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    capabilities: BTreeMap<&'static str, bool>,
}

impl Conflist<'_> {
    pub(super) fn to_text(&self) -> String {
        let mut own = Entry {
            r#type: PLUGIN,
            run_dir: Some(self.run_dir),
            capabilities: BTreeMap::from([
                ("dns", true),
                // containerd passes the pod's annotations; runtimes that know no such capability
                // pass nothing.
                ("io.kubernetes.cri.pod-annotations", true),
                ("ips", true),
                ("mac", true),
            ]),
        };
        // A pod with a limit has its programs attached where the limiter's disciplines are not.
        if self.chain.iter().any(|name| name == "bandwidth") {
            own.capabilities.insert("bandwidth", true);
        }
        let chained = self.chain.iter().map(|name| Entry {
            r#type: name,
            run_dir: None,
            capabilities: capability(name),
        });
        let file = File {
            cni_version: self.version.as_str(),
            name: self.network.as_str(),
            plugins: [own].into_iter().chain(chained).collect(),
        };
        let text = serde_json::to_string_pretty(&file).expect("text and lists are JSON");
        text + "\n"
    }
}

/// What a runtime may ask of a plugin after podwire's; it passes nothing on that is not declared.
fn capability(plugin: &str) -> BTreeMap<&'static str, bool> {
    let name = match plugin {
        "portmap" => "portMappings",
        "bandwidth" => "bandwidth",
        _ => return BTreeMap::new(),
    };
    BTreeMap::from([(name, true)])
}

/// Whether a configuration may be replaced and removed: podwire is what makes its interfaces.
pub(super) fn is_ours(content: &[u8]) -> bool {
    let Ok(file) = serde_json::from_slice::<Value>(content) else { return false };
    file["plugins"][0]["type"] == PLUGIN
}

/// Whether a configuration is of a network of this name.
pub(super) fn names(content: &[u8], network: &str) -> bool {
    serde_json::from_slice::<Value>(content).is_ok_and(|file| file["name"] == network)
}

/// Whether a runtime reads a file of this name; the reference library reads these.
pub(super) fn is_configuration(name: &str) -> bool {
    [".conf", ".conflist", ".json"].iter().any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(version: SpecVersion, chain: &[&str]) -> String {
        let chain: Vec<_> = chain.iter().map(ToString::to_string).collect();
        let network = &"podwire".parse().unwrap();
        Conflist { version, network, run_dir: "/run/podwire", chain: &chain }.to_text()
    }

    #[test]
    fn the_file_is_what_the_guides_show() {
        let expected = r#"{
  "cniVersion": "1.0.0",
  "name": "podwire",
  "plugins": [
    {
      "type": "podwire-cni",
      "runDir": "/run/podwire",
      "capabilities": {
        "dns": true,
        "io.kubernetes.cri.pod-annotations": true,
        "ips": true,
        "mac": true
      }
    },
    {
      "type": "portmap",
      "capabilities": {
        "portMappings": true
      }
    }
  ]
}
"#;
        assert_eq!(text(SpecVersion::V1_0_0, &["portmap"]), expected);
        let longer: Value =
            serde_json::from_str(&text(SpecVersion::V1_1_0, &["bandwidth", "tuning"])).unwrap();
        assert_eq!(longer["cniVersion"], "1.1.0");
        for limited in [0, 1] {
            assert_eq!(longer["plugins"][limited]["capabilities"]["bandwidth"], true);
        }
        assert_eq!(longer["plugins"][2], serde_json::json!({ "type": "tuning" }));
    }

    #[test]
    fn ours_are_told_from_others() {
        assert!(is_ours(text(SpecVersion::V1_0_0, &[]).as_bytes()));
        for foreign in [
            "",
            "podwire-cni",
            "[]",
            r#"{"type": "podwire-cni"}"#,
            r#"{"plugins": []}"#,
            r#"{"plugins": [{"type": "bridge"}, {"type": "podwire-cni"}]}"#,
        ] {
            assert!(!is_ours(foreign.as_bytes()), "{foreign}");
        }
        assert!(names(br#"{"name": "podwire"}"#, "podwire"));
        assert!(!names(br#"{"name": "other"}"#, "podwire"));
        assert!(!names(b"", "podwire"));
        assert!(is_configuration("10-x.conflist") && is_configuration("x.conf"));
        assert!(!is_configuration(".05-podwire.conflist.podwire-new"));
    }
}

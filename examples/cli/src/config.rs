//! `podwire config`: what the agent runs with, and what of it can be changed.

use std::collections::{BTreeMap, BTreeSet};

use clap::Subcommand;
use podwire_api::{AgentConfig, ConfigChange, Origin};
use serde_json::Value;

use crate::Places;
use crate::agent::client;
use crate::failure::Failure;
use crate::output::Page;
use crate::table::{Cell, GOOD, Table};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Changes settings of the running agent; they are kept over restarts, and count more than its
    /// options.
    Set {
        /// As in timeout.tcp-established 3600; several pairs change together.
        #[arg(value_name = "NAME VALUE", num_args = 2.., required = true)]
        pairs: Vec<String>,
    },
    /// Lets settings be again as the agent's options say, or by default.
    Unset {
        /// As in timeout.tcp-established.
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,
    },
}

pub(crate) fn run(places: &Places, command: Option<&Command>) -> Result<Page, Failure> {
    let client = client(places);
    let config = match command {
        None => client.config()?,
        Some(Command::Set { pairs }) => {
            let set = by_name(pairs)?;
            client.change_config(&ConfigChange { set, ..ConfigChange::default() })?
        }
        Some(Command::Unset { names }) => {
            let unset: BTreeSet<_> = names.iter().cloned().collect();
            client.change_config(&ConfigChange { unset, ..ConfigChange::default() })?
        }
    };
    Page::new(&config, text(&config)?)
}

fn by_name(pairs: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    let mut set = BTreeMap::new();
    for pair in pairs.chunks(2) {
        let [name, value] = pair else {
            let name = pair.first().map(String::as_str).unwrap_or_default();
            return Err(Failure::new(format!("{name} has no value")));
        };
        if set.insert(name.clone(), value.clone()).is_some() {
            return Err(Failure::new(format!("{name} is given twice")));
        }
    }
    Ok(set)
}

/// Everything but the settings is told as it stands in JSON, so that nothing is ever left out.
fn text(config: &AgentConfig) -> Result<String, Failure> {
    let json = serde_json::to_value(config).map_err(|error| Failure::of(&error))?;
    let mut options = Table::new().text("OPTION").text("VALUE");
    if let Value::Object(fields) = json {
        for (name, value) in fields.iter().filter(|(name, _)| *name != "settings") {
            flatten(&mut options, name.replace('_', "-"), value);
        }
    }
    let mut settings = Table::new().text("SETTING").text("VALUE").text("ORIGIN");
    for (name, setting) in &config.settings {
        let origin = Cell::new(setting.origin.as_str());
        settings.row([
            Cell::new(name),
            Cell::new(&setting.value),
            if setting.origin == Origin::Default { origin } else { origin.styled(GOOD) },
        ]);
    }
    Ok(format!("{options}\n{settings}"))
}

fn flatten(table: &mut Table, name: String, value: &Value) {
    let plain = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    match value {
        Value::Object(fields) => {
            for (field, value) in fields {
                flatten(table, format!("{name}.{}", field.replace('_', "-")), value);
            }
        }
        Value::Array(values) if values.iter().all(|one| !one.is_object()) => {
            let list: Vec<_> = values.iter().map(plain).collect();
            let list = (!list.is_empty()).then(|| list.join(", "));
            table.row([Cell::new(name), Cell::optional(list)]);
        }
        other => table.row([Cell::new(name), Cell::new(plain(other))]),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pairs_are_pairs() {
        let words =
            |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let set = by_name(&words(&["timeout.icmp", "9", "timeout.tcp-ended", "8"])).unwrap();
        assert_eq!((set.len(), set["timeout.icmp"].as_str()), (2, "9"));
        by_name(&words(&["a", "1", "b"])).unwrap_err();
        by_name(&words(&["a", "1", "a", "2"])).unwrap_err();
    }

    #[test]
    fn nothing_is_left_out() {
        let config = json!({
            "node": {
                "name": "n1", "router": {"v4": "10.1.0.1"}, "mtu": 1500, "route_mtu": 1450,
            },
            "pod_cidrs": ["10.1.0.0/24", "fd00::/64"], "attach": "mixed", "slots": 4096,
            "state_dir": "/s", "run_dir": "/r", "bpffs": "/b", "pending_flows": 65536,
            "settings": {"timeout.icmp": {"value": "9", "origin": "set"}},
        });
        let config: AgentConfig = serde_json::from_value(config).unwrap();
        let text = anstream::adapter::strip_str(&text(&config).unwrap()).to_string();
        for line in [
            "node.router.v4  10.1.0.1",
            "pod-cidrs       10.1.0.0/24, fd00::/64",
            "default-pools   -",
            "pending-flows   65536",
            "timeout.icmp  9      set",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}

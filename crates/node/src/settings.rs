//! What can be changed while the agent runs, and is kept.

use std::collections::{BTreeMap, BTreeSet};

use podwire_api::{ConfigChange, Origin, Setting};
use podwire_datapath::{Timeout, Timeouts};
use podwire_ipam::durable::Change;

use crate::choice::shown;
use crate::{Error, store};

/// Precedes a timeout's name in that of its setting.
const TIMEOUT: &str = "timeout.";

/// Options of the agent that a start fixes, as `GET /v1/config` names them.
const FIXED: &[&str] = &[
    "node",
    "pod_cidrs",
    "default_pools",
    "cluster_pools",
    "cooldown",
    "pending_ttl",
    "manifests",
    "attach",
    "slots",
    "flows",
    "pending_flows",
    "state_dir",
    "run_dir",
    "bpffs",
];

/// What options say, and what was set since: the latter counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    options: BTreeMap<Timeout, u32>,
    set: BTreeMap<Timeout, u32>,
}

impl Settings {
    /// From the options and from what was kept; with the names of what was kept and means nothing to
    /// this version.
    pub(crate) fn new(
        options: BTreeMap<Timeout, u32>,
        kept: &BTreeMap<String, String>,
    ) -> (Self, Vec<String>) {
        let mut settings = Self { options, set: BTreeMap::new() };
        let mut unknown = Vec::new();
        for (name, value) in kept {
            match parse(name, value) {
                Ok((timeout, seconds)) => drop(settings.set.insert(timeout, seconds)),
                Err(_) => unknown.push(name.clone()),
            }
        }
        (settings, unknown)
    }

    /// How long flows may be idle.
    pub(crate) fn timeouts(&self) -> Timeouts {
        let mut timeouts = Timeouts::default();
        for (&timeout, &seconds) in self.options.iter().chain(&self.set) {
            // Options were validated, and what was set as well.
            let _ = timeouts.set(timeout, seconds);
        }
        timeouts
    }

    /// All of them, by name.
    pub(crate) fn describe(&self) -> BTreeMap<String, Setting> {
        let timeouts = self.timeouts();
        let setting = |timeout: Timeout| {
            let origin = match timeout {
                _ if self.set.contains_key(&timeout) => Origin::Set,
                _ if self.options.contains_key(&timeout) => Origin::Option,
                _ => Origin::Default,
            };
            Setting { value: timeouts.get(timeout).to_string(), origin }
        };
        Timeout::ALL.into_iter().map(|timeout| (name(timeout), setting(timeout))).collect()
    }

    /// The settings as they are after a change, and what is to be kept of it.
    pub(crate) fn changed(&self, change: &ConfigChange) -> Result<(Self, Vec<Change>), Error> {
        let mut settings = self.clone();
        let mut kept = Vec::new();
        let unset: BTreeSet<&String> = change.unset.iter().collect();
        if let Some(both) = change.set.keys().find(|name| unset.contains(name)) {
            return Err(Error::Invalid(format!("{} is both set and unset", shown(both))));
        }
        for (name, value) in &change.set {
            let (timeout, seconds) = parse(name, value)?;
            settings.set.insert(timeout, seconds);
            kept.push(store::put_setting(name, &seconds.to_string()));
        }
        for name in &change.unset {
            settings.set.remove(&known(name)?);
            kept.push(store::remove_setting(name));
        }
        Ok((settings, kept))
    }
}

fn name(timeout: Timeout) -> String {
    format!("{TIMEOUT}{timeout}")
}

fn known(setting: &str) -> Result<Timeout, Error> {
    if let Some(timeout) = setting.strip_prefix(TIMEOUT).and_then(|name| name.parse().ok()) {
        return Ok(timeout);
    }
    let shown = shown(setting);
    let option = setting.replace('-', "_");
    if FIXED.contains(&option.as_str()) {
        return Err(Error::Invalid(format!(
            "{shown} cannot be changed while the agent runs: it is an option of podwired"
        )));
    }
    let names: Vec<_> = Timeout::ALL.into_iter().map(name).collect();
    Err(Error::Invalid(format!("there is no setting {shown}; there are {}", names.join(", "))))
}

fn parse(name: &str, value: &str) -> Result<(Timeout, u32), Error> {
    let timeout = known(name)?;
    let seconds = value
        .parse()
        .map_err(|_| Error::Invalid(format!("{name}: {} is no number of seconds", shown(value))))?;
    Timeouts::default().set(timeout, seconds).map_err(|error| Error::Invalid(error.to_string()))?;
    Ok((timeout, seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(pairs: &[(&str, &str)]) -> ConfigChange {
        let set = pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        ConfigChange { set, unset: BTreeSet::new() }
    }

    fn refusal(change: &ConfigChange) -> String {
        Settings::default().changed(change).unwrap_err().to_string()
    }

    #[test]
    fn what_is_set_counts_more_than_an_option() {
        let options = BTreeMap::from([(Timeout::Icmp, 9), (Timeout::TcpEnded, 8)]);
        let kept = BTreeMap::from([
            ("timeout.icmp".to_owned(), "5".to_owned()),
            ("timeout.of-tomorrow".to_owned(), "5".to_owned()),
        ]);
        let (settings, unknown) = Settings::new(options, &kept);
        assert_eq!(unknown, ["timeout.of-tomorrow"]);
        let timeouts = settings.timeouts();
        assert_eq!((timeouts.get(Timeout::Icmp), timeouts.get(Timeout::TcpEnded)), (5, 8));
        let all = settings.describe();
        assert_eq!(all["timeout.icmp"], Setting { value: "5".into(), origin: Origin::Set });
        assert_eq!(all["timeout.tcp-ended"].origin, Origin::Option);
        assert_eq!(all["timeout.udp-replied"].origin, Origin::Default);

        let unset = BTreeSet::from(["timeout.icmp".to_owned()]);
        let change = ConfigChange { unset, ..set(&[("timeout.udp-replied", "77")]) };
        let (settings, kept) = settings.changed(&change).unwrap();
        assert_eq!(settings.timeouts().get(Timeout::Icmp), 9, "the option's again");
        assert_eq!(settings.timeouts().get(Timeout::UdpReplied), 77);
        assert_eq!(kept.len(), 2);
    }

    #[test]
    fn refusals_say_what_there_is() {
        let unknown = refusal(&set(&[("timeout.icmp", "5"), ("timeouts", "5")]));
        assert!(unknown.contains("no setting \"timeouts\""), "{unknown}");
        assert!(unknown.contains("timeout.tcp-established"), "{unknown}");
        let fixed = refusal(&set(&[("pending-flows", "5")]));
        assert!(fixed.contains("option of podwired"), "{fixed}");
        let word = refusal(&set(&[("timeout.icmp", "soon")]));
        assert!(word.contains("number of seconds"), "{word}");
        assert!(refusal(&set(&[("timeout.icmp", "0")])).contains("between 1 and"));
        let unset = BTreeSet::from(["timeout.icmp".to_owned()]);
        let both = ConfigChange { unset, ..set(&[("timeout.icmp", "5")]) };
        assert!(refusal(&both).contains("both"));
    }
}

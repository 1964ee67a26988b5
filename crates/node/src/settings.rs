//! What can be changed while the agent runs, and is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use podwire_api::{ConfigChange, Origin, Setting};
use podwire_datapath::{Nat, Timeout, Timeouts};
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

/// Whose idle time `--timeout` limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IdleTimeout {
    /// Of flows.
    Flow(Timeout),
    /// Of mappings. Its name has `nat-` before it.
    Mapping(Timeout),
}

impl IdleTimeout {
    fn all() -> impl Iterator<Item = Self> {
        Timeout::ALL.into_iter().map(Self::Flow).chain(Timeout::ALL.into_iter().map(Self::Mapping))
    }

    /// Whether it can be so long; if not, why.
    pub(crate) fn check(self, seconds: u32) -> Result<(), String> {
        if (1..=Timeout::MOST).contains(&seconds) {
            return Ok(());
        }
        Err(format!("{self}: {seconds} is not between 1 and {} seconds", Timeout::MOST))
    }
}

impl fmt::Display for IdleTimeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flow(timeout) => timeout.fmt(f),
            Self::Mapping(timeout) => write!(f, "nat-{timeout}"),
        }
    }
}

impl FromStr for IdleTimeout {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::all().find(|timeout| timeout.to_string() == name).ok_or_else(|| {
            let names: Vec<_> = Self::all().map(|timeout| timeout.to_string()).collect();
            let (name, names) = (shown(name), names.join(", "));
            Error::Invalid(format!("there is no timeout {name}; there are {names}"))
        })
    }
}

/// What options say, and what was set since: the latter counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    options: BTreeMap<IdleTimeout, u32>,
    set: BTreeMap<IdleTimeout, u32>,
}

impl Settings {
    /// From the options and from what was kept; with the names of what was kept and means nothing to
    /// this version.
    pub(crate) fn new(
        options: BTreeMap<IdleTimeout, u32>,
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
    pub(crate) fn flow_timeouts(&self) -> Timeouts {
        self.timeouts(Timeouts::default(), IdleTimeout::Flow)
    }

    /// How long mappings may be idle.
    pub(crate) fn mapping_timeouts(&self) -> Timeouts {
        self.timeouts(Nat::default_timeouts(), IdleTimeout::Mapping)
    }

    fn timeouts(&self, mut timeouts: Timeouts, whose: fn(Timeout) -> IdleTimeout) -> Timeouts {
        for timeout in Timeout::ALL {
            let said = whose(timeout);
            if let Some(&seconds) = self.set.get(&said).or_else(|| self.options.get(&said)) {
                // Options were validated, and what was set as well.
                let _ = timeouts.set(timeout, seconds);
            }
        }
        timeouts
    }

    /// All of them, by name.
    pub(crate) fn describe(&self) -> BTreeMap<String, Setting> {
        let (flows, mappings) = (self.flow_timeouts(), self.mapping_timeouts());
        let setting = |timeout: IdleTimeout| {
            let origin = match timeout {
                _ if self.set.contains_key(&timeout) => Origin::Set,
                _ if self.options.contains_key(&timeout) => Origin::Option,
                _ => Origin::Default,
            };
            let seconds = match timeout {
                IdleTimeout::Flow(timeout) => flows.get(timeout),
                IdleTimeout::Mapping(timeout) => mappings.get(timeout),
            };
            Setting { value: seconds.to_string(), origin }
        };
        IdleTimeout::all().map(|timeout| (name(timeout), setting(timeout))).collect()
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

fn name(timeout: IdleTimeout) -> String {
    format!("{TIMEOUT}{timeout}")
}

fn known(setting: &str) -> Result<IdleTimeout, Error> {
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
    let names: Vec<_> = IdleTimeout::all().map(name).collect();
    Err(Error::Invalid(format!("there is no setting {shown}; there are {}", names.join(", "))))
}

fn parse(name: &str, value: &str) -> Result<(IdleTimeout, u32), Error> {
    let timeout = known(name)?;
    let seconds = value
        .parse()
        .map_err(|_| Error::Invalid(format!("{name}: {} is no number of seconds", shown(value))))?;
    timeout.check(seconds).map_err(Error::Invalid)?;
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
        let option = IdleTimeout::Flow;
        let options = BTreeMap::from([(option(Timeout::Icmp), 9), (option(Timeout::TcpEnded), 8)]);
        let kept = BTreeMap::from([
            ("timeout.icmp".to_owned(), "5".to_owned()),
            ("timeout.of-tomorrow".to_owned(), "5".to_owned()),
        ]);
        let (settings, unknown) = Settings::new(options, &kept);
        assert_eq!(unknown, ["timeout.of-tomorrow"]);
        let timeouts = settings.flow_timeouts();
        assert_eq!((timeouts.get(Timeout::Icmp), timeouts.get(Timeout::TcpEnded)), (5, 8));
        let all = settings.describe();
        assert_eq!(all["timeout.icmp"], Setting { value: "5".into(), origin: Origin::Set });
        assert_eq!(all["timeout.tcp-ended"].origin, Origin::Option);
        assert_eq!(all["timeout.udp-replied"].origin, Origin::Default);

        let unset = BTreeSet::from(["timeout.icmp".to_owned()]);
        let change = ConfigChange { unset, ..set(&[("timeout.udp-replied", "77")]) };
        let (settings, kept) = settings.changed(&change).unwrap();
        assert_eq!(settings.flow_timeouts().get(Timeout::Icmp), 9, "the option's again");
        assert_eq!(settings.flow_timeouts().get(Timeout::UdpReplied), 77);
        assert_eq!(kept.len(), 2);
    }

    #[test]
    fn mappings_have_timeouts_of_their_own() {
        let options = BTreeMap::from([(IdleTimeout::Mapping(Timeout::TcpEnded), 240)]);
        let (settings, _) = Settings::new(options, &BTreeMap::new());
        let (settings, _) = settings.changed(&set(&[("timeout.nat-udp-replied", "300")])).unwrap();
        let (flows, mappings) = (settings.flow_timeouts(), settings.mapping_timeouts());
        assert_eq!(flows, Timeouts::default());
        assert_eq!(mappings.get(Timeout::TcpEnded), 240);
        assert_eq!(mappings.get(Timeout::UdpReplied), 300);
        let all = settings.describe();
        let seconds = |value: &str, origin| Setting { value: value.into(), origin };
        assert_eq!(all["timeout.nat-tcp-ended"], seconds("240", Origin::Option));
        assert_eq!(all["timeout.nat-udp-replied"], seconds("300", Origin::Set));
        assert_eq!(all["timeout.nat-icmp"], seconds("60", Origin::Default));
        assert_eq!(all["timeout.icmp"], seconds("30", Origin::Default));
        for timeout in IdleTimeout::all() {
            assert_eq!(timeout.to_string().parse::<IdleTimeout>().unwrap(), timeout);
        }
    }

    #[test]
    fn refusals_say_what_there_is() {
        let unknown = refusal(&set(&[("timeout.icmp", "5"), ("timeouts", "5")]));
        assert!(unknown.contains("no setting \"timeouts\""), "{unknown}");
        assert!(unknown.contains("timeout.tcp-established"), "{unknown}");
        assert!(unknown.contains("timeout.nat-tcp-established"), "{unknown}");
        let fixed = refusal(&set(&[("pending-flows", "5")]));
        assert!(fixed.contains("option of podwired"), "{fixed}");
        let word = refusal(&set(&[("timeout.icmp", "soon")]));
        assert!(word.contains("number of seconds"), "{word}");
        let short = refusal(&set(&[("timeout.nat-icmp", "0")]));
        assert!(short.contains("nat-icmp: 0 is not between 1 and"), "{short}");
        let unset = BTreeSet::from(["timeout.icmp".to_owned()]);
        let both = ConfigChange { unset, ..set(&[("timeout.icmp", "5")]) };
        assert!(refusal(&both).contains("both"));
    }
}

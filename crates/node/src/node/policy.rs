//! What endpoints may send and receive, and who is behind addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{MutexGuard, PoisonError};

use ipnetwork::IpNetwork;
use podwire_api::{
    Endpoint, EndpointId, Interface, Policy, PolicyAction, PolicyDirection, PolicyRule,
    PrefixCount, PrefixIdentity, Removed, Repair,
};
use podwire_datapath::abi::identity::HOST;
use podwire_policy::{self as policy, Compiled, MAX_IDENTITY, ParseError};

use super::{Node, map, removed};
use crate::error::{Source, chain};
use crate::seam::Terms;
use crate::{Error, store};

/// What is known of who was behind prefixes before this start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Before {
    /// All that was said is on record.
    OnRecord,
    /// The records are new; what the datapath has may have been said.
    Unknown,
}

impl Node {
    /// The same with what was said about its endpoints and about prefixes. The datapath has the endpoints'
    /// part already.
    pub(crate) fn with_policies(
        self,
        policies: BTreeMap<EndpointId, Policy>,
        mut identities: BTreeMap<IpNetwork, u32>,
        before: Before,
    ) -> Result<(Self, Vec<Repair>), Error> {
        *self.policies() = policies;
        let there = self.datapath.identities().map_err(of_prefixes("read"))?;
        let there: BTreeMap<_, _> = there.into_iter().collect();
        let mut repairs = Vec::new();
        if before == Before::Unknown {
            // The node's own is not told (see `check`).
            let unrecorded = there.iter().map(|(prefix, identity)| (*prefix, *identity));
            let is_lost =
                |one: &(IpNetwork, u32)| one.1 != HOST && !identities.contains_key(&one.0);
            let lost: Vec<_> = unrecorded.filter(is_lost).collect();
            if !lost.is_empty() {
                let changes = lost.iter().map(|(prefix, one)| store::put_identity(*prefix, *one));
                self.ipam.begin(changes.collect())?.wait()?;
                repairs.push(Repair {
                    object: "identities of prefixes".into(),
                    found: format!("{} in force that are not on record", lost.len()),
                    done: "put on record".into(),
                });
                identities.extend(lost);
            }
        }
        let mut missing = Vec::new();
        for (prefix, identity) in &identities {
            if there.get(prefix) != Some(identity) && self.holder(*prefix)?.is_none() {
                missing.push((*prefix, *identity));
            }
        }
        let surplus = there.keys().filter(|prefix| !identities.contains_key(prefix));
        let surplus: Vec<_> = surplus.copied().collect();
        // One that cannot be set does not keep the pods from their agent.
        let set = self.datapath.set_identities(&missing);
        if let Err(error) = set.and_then(|()| self.datapath.forget_identities(&surplus)) {
            let found = chain(&*error);
            tracing::error!(error = found, "telling the datapath who is behind prefixes");
            let (object, done) = ("identities of prefixes".into(), "failed".into());
            repairs.push(Repair { object, found, done });
        }
        *self.identities() = identities;
        Ok((self, repairs))
    }

    /// Says who an endpoint is to others.
    pub(crate) fn set_identity(&self, id: &EndpointId, identity: u32) -> Result<Endpoint, Error> {
        check(identity)?;
        self.touch();
        let _turn = self.turns.take(id);
        let present = self.endpoint(id).ok_or_else(|| Error::NoEndpoint(id.clone()))?;
        let endpoint = Endpoint { identity, ..present.clone() };
        self.ipam.begin(vec![store::put(&endpoint)?])?.wait()?;
        let terms = Terms { identity, policy: None };
        if let Err(error) = self.datapath.set_terms(endpoint.ifindex, &terms).map_err(map(id)) {
            self.take_back(vec![store::put(&present)?]);
            return Err(error);
        }
        self.endpoints().insert(id.clone(), endpoint.clone());
        Ok(endpoint)
    }

    /// What an endpoint may send and receive. Where nothing is on record the datapath is asked: whatever is in force
    /// is shown.
    pub(crate) fn policy(&self, id: &EndpointId) -> Result<Policy, Error> {
        let _turn = self.turns.take(id);
        let endpoint = self.endpoint(id).ok_or_else(|| Error::NoEndpoint(id.clone()))?;
        if let Some(policy) = self.policies().get(id) {
            return Ok(policy.clone());
        }
        let found = self.datapath.terms_of(endpoint.ifindex).map_err(of_policy("read", id))?;
        let policy = found.map(|found| in_force(id, &found)).transpose()?.flatten();
        Ok(policy.unwrap_or_default())
    }

    /// Says what an endpoint may send and receive. It is on the disk before it holds: what the datapath has
    /// is never more than what is on record, whenever the agent is killed.
    pub(crate) fn set_policy(&self, id: &EndpointId, policy: &Policy) -> Result<Policy, Error> {
        self.touch();
        let _turn = self.turns.take(id);
        let endpoint = self.endpoint(id).ok_or_else(|| Error::NoEndpoint(id.clone()))?;
        if endpoint.interface == Interface::Adopted {
            return Err(Error::Conflict(format!(
                "the interface of {id} was made by another plugin, which decides what passes; podwire has \
                 policies for its own only"
            )));
        }
        let terms = terms(&endpoint, Some(policy))?;
        self.ipam.begin(vec![store::put_policy(id, policy)?])?.wait()?;
        let set = self.datapath.set_terms(endpoint.ifindex, &terms);
        if let Err(source) = set {
            let last = self.policies().get(id).cloned();
            self.take_back(vec![match last {
                Some(last) => store::put_policy(id, &last)?,
                None => store::remove_policy(id),
            }]);
            return Err(of_policy("set", id)(source));
        }
        self.policies().insert(id.clone(), policy.clone());
        Ok(policy.clone())
    }

    /// How the datapath has an endpoint on other terms than those on record.
    pub(super) fn misjudged(&self, endpoint: &Endpoint) -> Result<Option<String>, Error> {
        let id = &endpoint.id;
        let found = self.datapath.terms_of(endpoint.ifindex).map_err(of_policy("read", id))?;
        let Some(found) = found else { return Ok(None) };
        let terms = terms(endpoint, self.policies().get(id))?;
        Ok(terms.difference(&found))
    }

    /// Has record and datapath agree on an endpoint: a policy that is in force, while none is on record, is put there;
    /// in all else the record counts.
    pub(super) fn have_agree(&self, endpoint: &Endpoint) -> Result<(), Error> {
        let id = &endpoint.id;
        self.datapath.reread_policies().map_err(of_policy("read", id))?;
        let is_recorded = self.policies().contains_key(id);
        let found = self.datapath.terms_of(endpoint.ifindex).map_err(of_policy("read", id))?;
        if let Some(found) = found.filter(|_| !is_recorded)
            && let Some(policy) = in_force(id, &found)?
        {
            self.ipam.begin(vec![store::put_policy(id, &policy)?])?.wait()?;
            self.policies().insert(id.clone(), policy);
        }
        let terms = terms(endpoint, self.policies().get(id))?;
        self.datapath.set_terms(endpoint.ifindex, &terms).map_err(of_policy("set", id))
    }

    /// Lets an endpoint send and receive everything.
    pub(crate) fn delete_policy(&self, id: &EndpointId) -> Result<Removed, Error> {
        self.touch();
        let _turn = self.turns.take(id);
        let endpoint = self.endpoint(id).ok_or_else(|| Error::NoEndpoint(id.clone()))?;
        if endpoint.interface != Interface::Adopted {
            let terms = Terms { identity: endpoint.identity, policy: Some(Compiled::default()) };
            let set = self.datapath.set_terms(endpoint.ifindex, &terms);
            set.map_err(of_policy("remove", id))?;
        }
        self.ipam.begin(vec![store::remove_policy(id)])?.wait()?;
        Ok(removed(self.policies().remove(id).is_some()))
    }

    /// Who was said to be behind which prefix.
    pub(crate) fn prefix_identities(&self) -> Vec<PrefixIdentity> {
        let identities = self.identities();
        identities.iter().map(|(&prefix, &identity)| PrefixIdentity { prefix, identity }).collect()
    }

    /// Says who is behind prefixes.
    pub(crate) fn set_prefix_identities(
        &self,
        entries: &[PrefixIdentity],
    ) -> Result<PrefixCount, Error> {
        let mut identities = self.identities();
        for entry in entries {
            check(entry.identity)?;
            check_prefix(entry.prefix)?;
            let address = entry.prefix.ip();
            let why = match self.holder(entry.prefix)? {
                None => continue,
                Some(Holder::Endpoint) => "an endpoint's of this node: set that one's identity",
                Some(Holder::Node) => "the node's own, which has identity 1 while it is",
            };
            return Err(Error::Conflict(format!("{address} is {why}")));
        }
        let pairs: Vec<_> = entries.iter().map(|entry| (entry.prefix, entry.identity)).collect();
        self.datapath.set_identities(&pairs).map_err(of_prefixes("set"))?;
        let changes = pairs.iter().map(|(prefix, one)| store::put_identity(*prefix, *one));
        // What is not on the disk in the end is taken out of the datapath by the next start.
        self.ipam.begin(changes.collect())?.wait()?;
        identities.extend(pairs);
        Ok(PrefixCount { prefixes: entries.len() as u64 })
    }

    /// Forgets who is behind prefixes.
    pub(crate) fn forget_prefix_identities(
        &self,
        prefixes: &[IpNetwork],
    ) -> Result<PrefixCount, Error> {
        let mut identities = self.identities();
        let known: Vec<IpNetwork> =
            prefixes.iter().filter(|prefix| identities.contains_key(prefix)).copied().collect();
        let mut in_datapath = Vec::with_capacity(known.len());
        for prefix in &known {
            if self.holder(*prefix)?.is_none() {
                in_datapath.push(*prefix);
            }
        }
        self.datapath.forget_identities(&in_datapath).map_err(of_prefixes("forget"))?;
        let changes = known.iter().map(|prefix| store::remove_identity(*prefix));
        self.ipam.begin(changes.collect())?.wait()?;
        identities.retain(|prefix, _| !known.contains(prefix));
        Ok(PrefixCount { prefixes: known.len() as u64 })
    }

    /// Does something with what clients have said of prefixes, while they say nothing else.
    pub(crate) fn with_identities<T>(&self, act: impl FnOnce(&BTreeMap<IpNetwork, u32>) -> T) -> T {
        act(&self.identities())
    }

    /// Removes what no packet is judged by any more.
    pub(crate) fn tidy(&self) -> Result<(), Error> {
        self.datapath.tidy().map_err(|source| {
            let object = "policies that nobody has".into();
            Error::Datapath { operation: "remove", object, source }
        })
    }

    /// An endpoint's addresses are somebody else's again, of whom something may have been said.
    pub(super) fn tell_again(&self, addresses: &[IpAddr]) {
        let identities = self.identities();
        let told = addresses.iter().map(|address| IpNetwork::from(*address));
        let told: Vec<_> =
            told.filter_map(|prefix| Some((prefix, *identities.get(&prefix)?))).collect();
        if !told.is_empty()
            && let Err(error) = self.datapath.set_identities(&told)
        {
            tracing::warn!(error = chain(&*error), ?told, "telling who is behind addresses");
        }
    }

    /// The datapath has refused what is on the disk already.
    fn take_back(&self, changes: Vec<podwire_ipam::durable::Change>) {
        let undone = self.ipam.begin(changes).and_then(podwire_ipam::durable::Ticket::wait);
        if let Err(error) = undone {
            tracing::warn!(error = chain(&error), "undoing a record that the datapath refused");
        }
    }

    /// Who has an address, whatever is told of it.
    fn holder(&self, prefix: IpNetwork) -> Result<Option<Holder>, Error> {
        let address = prefix.ip();
        if !is_whole(prefix) {
            return Ok(None);
        }
        if self.endpoints().values().any(|endpoint| endpoint.addresses.contains(&address)) {
            return Ok(Some(Holder::Endpoint));
        }
        let is_own = self.datapath.is_own(address).map_err(of_prefixes("read"))?;
        Ok(is_own.then_some(Holder::Node))
    }

    pub(super) fn policies(&self) -> MutexGuard<'_, BTreeMap<EndpointId, Policy>> {
        self.policies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn identities(&self) -> MutexGuard<'_, BTreeMap<IpNetwork, u32>> {
        self.identities.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who has an address of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holder {
    Endpoint,
    Node,
}

/// On which terms an endpoint is in the datapath. What nobody has said anything of stays as it is.
pub(crate) fn terms(endpoint: &Endpoint, policy: Option<&Policy>) -> Result<Terms, Error> {
    let policy = policy.map(compile).transpose()?;
    Ok(Terms { identity: endpoint.identity, policy })
}

fn compile(said: &Policy) -> Result<Compiled, Error> {
    let wrong = |error: &dyn std::error::Error| Error::Invalid(chain(error));
    let direction = |said: &PolicyDirection, name: &str| {
        let rules = said.rules.iter().zip(1..).map(|(rule, number)| {
            let parsed = || -> Result<policy::Rule, ParseError> {
                Ok(policy::Rule {
                    action: action(rule.action),
                    peer: rule.peer.parse()?,
                    protocol: rule.protocol.parse()?,
                    ports: rule.ports.parse()?,
                })
            };
            parsed().map_err(|error| Error::Invalid(format!("{name} rule {number}: {error}")))
        });
        let rules = rules.collect::<Result<_, _>>()?;
        Ok::<_, Error>(policy::Direction { default: action(said.default), rules })
    };
    let ingress = direction(&said.ingress, "ingress")?;
    let egress = direction(&said.egress, "egress")?;
    Compiled::of(&policy::Policy { ingress, egress }).map_err(|error| wrong(&error))
}

/// The policy of terms that the datapath has, as rules that mean just the same; none if everything passes.
pub(crate) fn in_force(id: &EndpointId, found: &Terms) -> Result<Option<Policy>, Error> {
    let Some(rows) = found.policy.as_ref().filter(|rows| !rows.permits_all()) else {
        return Ok(None);
    };
    let direction = |policy::Direction { default, rules }| PolicyDirection {
        default: worded(default),
        rules: rules.iter().map(rule).collect(),
    };
    let policy::Policy { ingress, egress } = rows.to_policy();
    let policy = Policy { ingress: direction(ingress), egress: direction(egress) };
    if compile(&policy).is_ok_and(|compiled| compiled == *rows) {
        return Ok(Some(policy));
    }
    Err(Error::Conflict(format!(
        "the policy that is in force for {id} is not on record, and podwire has not written its rows: see \
         `podwire bpf policy list`; `podwire policy set` or `podwire policy delete` replaces it"
    )))
}

fn rule(rule: &policy::Rule) -> PolicyRule {
    PolicyRule {
        action: worded(rule.action),
        peer: rule.peer.to_string(),
        protocol: rule.protocol.to_string(),
        ports: rule.ports.to_string(),
    }
}

fn action(said: PolicyAction) -> policy::Action {
    match said {
        PolicyAction::Allow => policy::Action::Allow,
        PolicyAction::Deny => policy::Action::Deny,
    }
}

fn worded(action: policy::Action) -> PolicyAction {
    match action {
        policy::Action::Allow => PolicyAction::Allow,
        policy::Action::Deny => PolicyAction::Deny,
    }
}

/// Which addresses are the node's own is the kernel's to say, and who has the node's identity comes in whatever
/// policies say.
fn check(identity: u32) -> Result<(), Error> {
    match identity {
        HOST => Err(Error::Invalid(format!(
            "identity {HOST} is the node's own, whose addresses podwired finds by itself; give another one, \
             and allow that"
        ))),
        2..=MAX_IDENTITY => Ok(()),
        _ => Err(Error::Invalid(format!("identity {identity}: they are 2 to {MAX_IDENTITY}"))),
    }
}

fn check_prefix(prefix: IpNetwork) -> Result<(), Error> {
    if prefix.ip() != prefix.network() {
        let (network, length) = (prefix.network(), prefix.prefix());
        return Err(Error::Invalid(format!(
            "{prefix} is no prefix; did you mean {network}/{length}?"
        )));
    }
    match prefix.ip() {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            Err(Error::Invalid(format!("{prefix}: say it as IPv4")))
        }
        _ => Ok(()),
    }
}

pub(crate) fn is_whole(prefix: IpNetwork) -> bool {
    IpNetwork::from(prefix.ip()) == prefix
}

fn of_policy(operation: &'static str, id: &EndpointId) -> impl FnOnce(Source) -> Error + use<> {
    let object = format!("the policy of {id}");
    move |source| Error::Datapath { operation, object, source }
}

fn of_prefixes(operation: &'static str) -> impl FnOnce(Source) -> Error {
    move |source| Error::Datapath { operation, object: "who is behind prefixes".into(), source }
}

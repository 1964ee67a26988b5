use std::collections::HashSet;

use podwire_netlink::{Append, Batch, Netlink, Rule};

use crate::compare::rule_key;
use crate::{Change, Error, Failure};

/// Makes changes, in order, many in one send. A failure does not stop those after it. What turns out
/// to be done already (an object to remove is gone, a rule to add is there) is no failure.
///
/// # Errors
///
/// [`Error::Apply`] with every change that was refused; [`Error::Netlink`] when the kernel cannot be
/// reached.
pub fn apply(netlink: &mut Netlink, changes: &[Change]) -> Result<(), Error> {
    let mut batch = Batch::new();
    for change in changes {
        batch.push(change);
    }
    let outcomes = netlink.send(&mut batch)?.into_outcomes();
    let (mut failures, mut doubtful) = (Vec::new(), Vec::new());
    for (change, outcome) in changes.iter().zip(outcomes) {
        match (change, outcome) {
            (Change::AddRule(rule), Err(error)) if error.is_exists() => doubtful.push(rule),
            (_, Err(error)) if !change.is_made_by(&error) => {
                failures.push(Failure { change: change.clone(), error });
            }
            _ => {}
        }
    }
    if !doubtful.is_empty() {
        add_rules(netlink, &doubtful, &mut failures)?;
    }
    if failures.is_empty() { Ok(()) } else { Err(Error::Apply { total: changes.len(), failures }) }
}

/// Adds rules of which the kernel says that they exist. It says so, too, when a rule of the same
/// priority has all that they say and more.
fn add_rules(
    netlink: &mut Netlink,
    rules: &[&Rule],
    failures: &mut Vec<Failure>,
) -> Result<(), Error> {
    let present: HashSet<_> = netlink.rules(None)?.iter().map(rule_key).collect();
    for rule in rules.iter().filter(|rule| !present.contains(&rule_key(rule))) {
        if let Err(error) = netlink.execute(&Append(*rule)) {
            failures.push(Failure { change: Change::AddRule((*rule).clone()), error });
        }
    }
    Ok(())
}

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use podwire_node::{Leftover, leftovers};
use serde_json::json;

use crate::Places;
use crate::failure::{Failure, chain};
use crate::output::Page;

/// Whether the operator has agreed already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Consent {
    Given,
    Ask,
}

/// Removes everything, and names it. What cannot be removed does not keep the rest.
pub(crate) fn run(places: &Places, consent: Consent) -> Result<Page, Failure> {
    let found = leftovers(&podwire_node::Places {
        state_dir: places.state_dir.clone(),
        run_dir: places.run_dir.clone(),
        bpffs: places.bpffs.clone(),
    })?;
    if found.is_empty() {
        return Page::new(&json!({"removed": []}), "nothing of podwire is on this node\n");
    }
    if consent == Consent::Ask {
        ask(&found)?;
    }
    let mut removed = Vec::new();
    let mut text = String::new();
    let mut failed = Vec::new();
    for leftover in &found {
        match leftover.remove() {
            Ok(()) => {
                text.push_str(&format!("removed {leftover}\n"));
                removed.push(json!({"kind": leftover.kind().name(), "name": leftover.name()}));
            }
            Err(error) => failed.push(format!("{leftover}: {}", chain(&error))),
        }
    }
    if failed.is_empty() {
        return Page::new(&json!({"removed": removed}), text);
    }
    // What was removed is worth knowing also when something was not.
    let mut stderr = anstream::stderr().lock();
    let _ = stderr.write_all(text.as_bytes());
    let message = format!("{} things could not be removed: {}", failed.len(), failed.join("; "));
    Err(Failure::new(message).with_hint("see to the reasons, then run podwire cleanup again"))
}

fn ask(found: &[Leftover]) -> Result<(), Failure> {
    let refused = || Failure::new("nothing was removed").with_hint("say --yes to remove it");
    if !io::stdin().is_terminal() {
        return Err(refused());
    }
    let mut stderr = anstream::stderr().lock();
    for leftover in found {
        writeln!(stderr, "  {leftover}")?;
    }
    write!(
        stderr,
        "Remove these {} things? Pods that run lose their network. [y/N] ",
        found.len()
    )?;
    stderr.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(refused()),
    }
}

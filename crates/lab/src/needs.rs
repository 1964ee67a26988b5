use std::{env, fs::OpenOptions, io::Write, thread};

/// Comma-separated names of what may be missing; set by `cargo xtask test --allow-missing`.
pub const ALLOW_MISSING_VARIABLE: &str = "PODWIRE_ALLOW_MISSING";

/// The file to which a test that is skipped for that reason appends a line.
pub const SKIPS_VARIABLE: &str = "PODWIRE_SKIPS";

/// Whether the calling test must be skipped, because `thing` is missing and that was allowed.
///
/// `present` tells whether it is there. The skip is recorded, so that the test is counted as
/// skipped and not as passed.
///
/// # Panics
/// With `needs <thing>`, when it is missing and that was not allowed: a missing peer fails the test.
#[must_use]
pub fn allowed_missing(thing: &str, present: impl FnOnce() -> bool) -> bool {
    if present() {
        return false;
    }
    let allowed = env::var(ALLOW_MISSING_VARIABLE).unwrap_or_default();
    assert!(
        allowed.split(',').any(|name| name.trim() == thing),
        "needs {thing}: `cargo xtask test --install` installs it, `--allow-missing {thing}` does without"
    );
    record(thing);
    true
}

fn record(thing: &str) {
    let Some(path) = env::var_os(SKIPS_VARIABLE) else { return };
    let test = thread::current().name().unwrap_or("a test").to_owned();
    let written = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .and_then(|mut file| file.write_all(format!("{test}: needs {thing}\n").as_bytes()));
    if let Err(error) = written {
        panic!("record a skipped test in {}: {error}", path.display());
    }
}

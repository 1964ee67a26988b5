use std::{
    env,
    path::{Path, PathBuf},
};

use crate::{Error, Result};

/// The folder with the workspace's binaries; set by `cargo xtask test`.
pub const BIN_DIR_VARIABLE: &str = "PODWIRE_BIN_DIR";

/// Path of a binary of this workspace: in `$PODWIRE_BIN_DIR`, or else in the profile's folder that
/// the running test, benchmark or program was built into.
///
/// # Errors
/// [`Error::Binary`] when it is not there.
pub fn binary(name: &str) -> Result<PathBuf> {
    let folder = match env::var_os(BIN_DIR_VARIABLE) {
        Some(folder) => PathBuf::from(folder),
        None => env::current_exe().ok().and_then(|own| profile_folder(&own)).unwrap_or_default(),
    };
    let path = folder.join(name);
    if path.is_file() { Ok(path) } else { Err(Error::Binary { name: name.to_owned(), folder }) }
}

/// Of `target/ci/deps/test-0123` and `target/ci/xtask` alike: `target/ci`.
fn profile_folder(own: &Path) -> Option<PathBuf> {
    let folder = own.parent()?;
    let below = ["deps", "examples"].iter().any(|name| folder.ends_with(name));
    Some(if below { folder.parent()? } else { folder }.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profile_folder_is_found_from_tests_examples_and_programs() {
        for own in ["/t/ci/deps/endpoint-01ab", "/t/ci/examples/pods", "/t/ci/xtask"] {
            assert_eq!(profile_folder(Path::new(own)), Some("/t/ci".into()), "{own}");
        }
    }

    #[test]
    fn a_binary_that_is_not_there_is_named_with_how_to_build_it() {
        let error = binary("no-such-binary").unwrap_err().to_string();
        assert!(error.contains("cargo build --bin no-such-binary"), "{error}");
    }
}

//! Errors of the store as the specification's error results.

use podwire_cni::{Code, Error};
use podwire_ipam::Error as Refusal;
use podwire_ipam::store::{FileError, StoreError};

/// Codes of this plugin's own; those that `podwire-cni` has too mean the same.
const EXHAUSTED: u32 = 101;
/// A CHECK found differences.
pub(crate) const DIFFERENT: u32 = 103;
/// An address that was asked for is not granted.
const ADDRESS_REFUSED: u32 = 104;
/// The attachment holds other addresses than it asks for.
const HOLDS_OTHERS: u32 = 105;

pub(crate) fn of_store(error: StoreError<FileError>) -> Error {
    match error {
        StoreError::Refused(refusal) => of_refusal(&refusal),
        StoreError::Table(file) => of_file(&file),
        other => Error::new(Code::IO_FAILURE, other.to_string()).with_details(
            "the store is damaged; remove its file when no pod of this network runs any more",
        ),
    }
}

pub(crate) fn of_refusal(refusal: &Refusal) -> Error {
    let (code, hint) = match refusal {
        Refusal::RangesExhausted { .. } => (
            Code::plugin(EXHAUSTED),
            "remove pods, call GC or give more ranges; `podwire-ipam list` shows who holds what",
        ),
        Refusal::Held { .. } => (
            Code::plugin(ADDRESS_REFUSED),
            "ask for another address, or call DEL for the attachment that holds it",
        ),
        Refusal::Unusable { .. } | Refusal::OutsidePool { .. } => (
            Code::plugin(ADDRESS_REFUSED),
            "ask for an address of the configured ranges, at most one of each set",
        ),
        Refusal::OwnerHolds { .. } => (
            Code::plugin(HOLDS_OTHERS),
            "call DEL for this attachment first: an ADD that is repeated must be the same",
        ),
        _ => (Code::INVALID_NETWORK_CONFIG, "correct the ranges under ipam"),
    };
    Error::new(code, refusal.to_string()).with_details(hint)
}

pub(crate) fn of_file(error: &FileError) -> Error {
    let (code, hint) = match error {
        FileError::Busy { .. } => (
            Code::TRY_AGAIN_LATER,
            "another call has it locked; if none runs, look for the process with fuser",
        ),
        FileError::Name { .. } => (Code::INVALID_NETWORK_CONFIG, "give the network another name"),
        FileError::Database { operation: "open", .. } => (
            Code::IO_FAILURE,
            "it is no usable store; remove it when no pod of this network runs any more",
        ),
        _ => (Code::IO_FAILURE, "see to it that ipam.dataDir can be written and has room"),
    };
    let mut details = hint.to_owned();
    if let Some(source) = std::error::Error::source(error) {
        details = format!("{source}; {hint}");
    }
    Error::new(code, error.to_string()).with_details(details)
}

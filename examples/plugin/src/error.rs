//! Errors of the crates below as the specification's error results.

use podwire_api::ErrorCode;
use podwire_cni::{Code, Error};

/// Codes of this plugin's own; the specification leaves 100 and above to plugins.
const AGENT_REFUSED: u32 = 100;
const EXHAUSTED: u32 = 101;
const NAME_TAKEN: u32 = 102;
/// A CHECK found differences.
pub(crate) const DIFFERENT: u32 = 103;

/// What a failed verb answers.
pub(crate) fn of_endpoint(verb: &str, error: &podwire_endpoint::Error) -> Error {
    use podwire_endpoint::Error as Endpoint;
    let code = match error {
        _ if error.is_try_again() => Code::TRY_AGAIN_LATER,
        Endpoint::Agent(agent) => match agent.code() {
            Some(ErrorCode::Exhausted) => Code::plugin(EXHAUSTED),
            Some(ErrorCode::Invalid) => Code::INVALID_NETWORK_CONFIG,
            _ => Code::plugin(AGENT_REFUSED),
        },
        Endpoint::Netns(error) if error.is_not_found() || error.is_not_a_netns() => {
            return of_netns(error);
        }
        Endpoint::Netns(error) if error.taken().is_some() => Code::plugin(NAME_TAKEN),
        Endpoint::NameTaken { .. }
        | Endpoint::HostLinkTaken { .. }
        | Endpoint::RouteTaken { .. } => Code::plugin(NAME_TAKEN),
        Endpoint::NotUsable { .. } => Code::TRY_AGAIN_LATER,
        Endpoint::OwnNetns { .. } => Code::INVALID_NETNS,
        Endpoint::Note { .. } => Code::IO_FAILURE,
        _ => Code::INTERNAL,
    };
    let msg = format!("{verb} failed: {error}");
    let details = details(&msg, error, error.hint());
    Error::new(code, msg).with_details(details)
}

/// What a network namespace that cannot be used answers.
pub(crate) fn of_netns(error: &podwire_endpoint::NetnsError) -> Error {
    let msg =
        if error.is_not_found() { "CNI_NETNS does not exist" } else { "CNI_NETNS cannot be used" };
    Error::new(Code::INVALID_NETNS, msg).with_source(error)
}

/// What the message does not say yet: the error, its sources, and what to do about it.
pub(crate) fn details(msg: &str, error: &dyn std::error::Error, hint: Option<&str>) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(cause) = next {
        let text = cause.to_string();
        // Many errors repeat their source in their own text.
        if !msg.contains(&text) && !parts.iter().any(|part| part.contains(&text)) {
            parts.push(text);
        }
        next = cause.source();
    }
    parts.extend(hint.map(str::to_owned));
    parts.join("; ")
}

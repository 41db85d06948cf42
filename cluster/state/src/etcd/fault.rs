//! What a failed call means: whether it may have been carried out, and whether another endpoint may do better.

use std::error::Error;

use tonic::{Code, Status};

use crate::error::StateErrorKind;

/// The meaning of a failed call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nobody was asked: there is no connection.
    NotSent,
    /// The server said that it did nothing, because it cannot at the moment.
    NotServed,
    /// The token for the user has ended.
    Token,
    /// The connection broke, or the server lost sight of the request: it may have been carried out.
    Broken,
    /// The request was understood and refused.
    Refused(StateErrorKind),
}

/// Judges a status.
pub(super) fn fault_of(status: &Status) -> Fault {
    if is_connect_error(status) {
        return Fault::NotSent;
    }
    let text = status.message();
    match status.code() {
        // Only statuses made on this side have a source: there was no answer.
        Code::Unavailable if status.source().is_some() => Fault::Broken,
        // etcd's other reasons ("leader changed", "request timed out") leave open what happened.
        Code::Unavailable if text.starts_with("etcdserver: ") && !text.contains("no leader") => Fault::Broken,
        Code::Unavailable => Fault::NotServed,
        Code::ResourceExhausted if text.contains("too many requests") => Fault::NotServed,
        Code::Unauthenticated => Fault::Token,
        Code::Unknown | Code::Internal | Code::Cancelled | Code::DeadlineExceeded | Code::Aborted => Fault::Broken,
        code => Fault::Refused(refusal(code, text)),
    }
}

fn is_connect_error(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

fn refusal(code: Code, text: &str) -> StateErrorKind {
    let says = |parts: &[&str]| parts.iter().any(|part| text.contains(part));
    match code {
        _ if says(&["too large", "too many operations"]) => StateErrorKind::TooLarge,
        _ if says(&["has been compacted"]) => StateErrorKind::Compacted,
        _ if says(&["lease not found"]) => StateErrorKind::LeaseNotFound,
        _ if says(&["authentication failed", "user name is empty", "permission denied"]) => StateErrorKind::Denied,
        Code::PermissionDenied => StateErrorKind::Denied,
        Code::ResourceExhausted => StateErrorKind::Full,
        _ => StateErrorKind::Invalid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_of_a_server_are_understood() {
        use StateErrorKind::*;
        let cases = [
            (Status::unavailable("etcdserver: no leader"), Fault::NotServed),
            (Status::unavailable("etcdserver: leader changed"), Fault::Broken),
            (Status::unavailable("the embedded state store in d is closed"), Fault::NotServed),
            (Status::resource_exhausted("etcdserver: too many requests"), Fault::NotServed),
            (Status::resource_exhausted("etcdserver: mvcc: database space exceeded"), Fault::Refused(Full)),
            (Status::invalid_argument("etcdserver: request is too large"), Fault::Refused(TooLarge)),
            (Status::out_of_range("Error, decoded message length too large: 3 > 2"), Fault::Refused(TooLarge)),
            (Status::invalid_argument("etcdserver: duplicate key given in txn request"), Fault::Refused(Invalid)),
            (Status::out_of_range("etcdserver: mvcc: required revision has been compacted"), Fault::Refused(Compacted)),
            (Status::not_found("etcdserver: requested lease not found"), Fault::Refused(LeaseNotFound)),
            (Status::permission_denied("etcdserver: permission denied"), Fault::Refused(Denied)),
            (Status::invalid_argument("etcdserver: user name is empty"), Fault::Refused(Denied)),
            (Status::unauthenticated("etcdserver: invalid auth token"), Fault::Token),
            (Status::unknown("connection reset"), Fault::Broken),
        ];
        for (status, fault) in cases {
            assert_eq!(fault_of(&status), fault, "{status}");
        }
    }
}

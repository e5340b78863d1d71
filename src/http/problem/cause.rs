//! What the agent, the cluster and the state refuse, as it is told over HTTP.

use axum::http::StatusCode;

use super::Refusal;
use crate::agent::handle::AskError;
use crate::agent::ring::RingError;
use crate::cluster::node::{PeersError, ProposeError};
use crate::state::Rejected;

impl From<AskError> for Refusal {
    fn from(error: AskError) -> Self {
        let detail = error.to_string();
        match error {
            AskError::Busy => Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "busy", detail),
            AskError::Stopping => {
                Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", "the agent is stopping", detail)
            }
            AskError::NotAllowed => Refusal::new(StatusCode::FORBIDDEN, "not-allowed", "not allowed", detail),
            AskError::Rejected(rejected) => rejected.into(),
            AskError::Unanswered(ProposeError::TooLarge(_) | ProposeError::Encode(_)) => {
                Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "too large", detail)
            }
            AskError::Unanswered(ProposeError::Unknown(_)) => {
                Refusal::new(StatusCode::GATEWAY_TIMEOUT, "unknown-outcome", "nobody knows", detail)
            }
            AskError::Unanswered(ProposeError::NoPeer(_)) => {
                Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "no-peer", "no peer", detail)
            }
            AskError::Unanswered(_) => {
                Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "no-quorum", "no quorum", detail)
            }
        }
    }
}

impl From<RingError> for Refusal {
    fn from(error: RingError) -> Self {
        let detail = error.to_string();
        match error {
            RingError::Alone => Refusal::new(StatusCode::CONFLICT, "alone", "there is no other host", detail),
            RingError::Peers(PeersError::Refused(_)) => {
                Refusal::new(StatusCode::CONFLICT, "peers", "the peers stay as they are", detail)
            }
            RingError::NotPrimary(_) | RingError::Peers(PeersError::NoPrimary(_)) => {
                Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "no-quorum", "no quorum", detail)
            }
        }
    }
}

impl From<Rejected> for Refusal {
    fn from(rejected: Rejected) -> Self {
        let detail = rejected.to_string();
        let (status, kind, title) = match rejected {
            Rejected::Revision { .. } => (StatusCode::CONFLICT, "revision", "another revision"),
            Rejected::NoProcess(_) => (StatusCode::NOT_FOUND, "no-process", "no such process"),
            Rejected::NoToken(_) => (StatusCode::NOT_FOUND, "no-token-of-that-name", "no such token"),
            Rejected::TokenExists(_) => (StatusCode::CONFLICT, "token-exists", "the name is taken"),
            Rejected::TooManyTokens => (StatusCode::CONFLICT, "too-many-tokens", "as many as allowed"),
            Rejected::NoHost(_) => (StatusCode::NOT_FOUND, "no-host", "no such host"),
            Rejected::NoInstance(_) => (StatusCode::NOT_FOUND, "no-instance", "no such instance"),
            Rejected::NotCounted(_) => (StatusCode::CONFLICT, "not-counted", "not a counted process"),
            Rejected::NotOnDemand(_) => (StatusCode::CONFLICT, "not-on-demand", "not an on-demand process"),
            Rejected::Full { .. } => (StatusCode::CONFLICT, "full", "as many as allowed"),
            Rejected::OtherLaunch { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "key-reused", "a used key"),
            Rejected::NoArgument { .. } => {
                (StatusCode::UNPROCESSABLE_ENTITY, "no-argument", "an argument is missing")
            }
            Rejected::Epoch { .. } => (StatusCode::CONFLICT, "conflict", "restarted by others"),
            // The rest answers commands of planner and hosts, which the API never proposes.
            _ => (StatusCode::CONFLICT, "conflict", "refused"),
        };
        Refusal::new(status, kind, title, detail)
    }
}

#[cfg(test)]
mod tests {
    use axum::http::header;
    use axum::response::IntoResponse;

    use super::*;

    #[test]
    fn what_may_have_been_done_is_not_to_be_sent_again_unseen() {
        for (error, kind, again) in [
            (ProposeError::NoPrimary(Default::default()), "503 no-quorum", true),
            (ProposeError::NoPeer(Default::default()), "503 no-peer", true),
            (ProposeError::Unknown(Default::default()), "504 unknown-outcome", false),
        ] {
            let refusal = Refusal::from(AskError::Unanswered(error));
            assert_eq!(format!("{} {}", refusal.status.as_u16(), refusal.kind), kind);
            assert_eq!(refusal.into_response().headers().contains_key(header::RETRY_AFTER), again, "{kind}");
        }
    }
}

//! Answering hosts that are no peers: their sessions are the desk's, what they ask of the primary goes on to it.
//!
//! Owns nothing. A host speaks for itself only (`session::rights`), and none of Raft's messages is taken from it.

use std::time::Duration;

use super::Shared;
use super::propose::{PATIENCE, PeersError, ProposeError};
use super::service::{Answers, words};
use crate::cluster::raft::Change;
use crate::cluster::raft::membership::PeersChange;
use crate::cluster::session::desk::Outlook;
use crate::cluster::session::message::{Attach, Follow, PeersChanged, Proposed};
use crate::cluster::session::rights;
use crate::cluster::wire::{Hello, Kind, decode, encode};
use crate::plan::liveness::Attendance;

/// How long a host's change is tried; the host asks again.
const ATTEMPT: Duration = Duration::from_millis(1800);

/// How long the primary has for what it is passed.
const RELAY: Duration = Duration::from_millis(800);

impl Answers {
    /// Answers a host on its own two lines.
    pub(super) async fn answer_host(&self, from: &Hello, kind: Kind, body: &[u8]) -> Result<Vec<u8>, String> {
        let shared = &self.shared;
        match kind {
            Kind::Load => encode(&shared.desk.load(&shared.outlook())),
            Kind::Attach => {
                let asked: Attach = decode(body).map_err(words)?;
                encode(&shared.desk.attach(&from.host, &asked, &shared.outlook()))
            }
            Kind::Follow => {
                let asked: Follow = decode(body).map_err(words)?;
                return shared.desk.follow(&from.host, &asked, &shared.outlook()).await.map_err(words);
            }
            Kind::Propose => {
                let change: Change = decode(body).map_err(words)?;
                rights::change(&from.host, &change).map_err(words)?;
                encode(&match shared.submit(change.stamped(shared.now_ms()), ATTEMPT).await {
                    Ok((outcome, index)) => Proposed::Applied(outcome, index),
                    Err(ProposeError::Unknown(_)) => Proposed::Unknown,
                    Err(error @ ProposeError::TooLarge(_)) => return Err(words(error)),
                    Err(_) => Proposed::NoPrimary,
                })
            }
            Kind::ReadIndex => encode(&shared.read_index().await.ok_or("no primary answers")?),
            Kind::Peers => {
                let change: PeersChange = decode(body).map_err(words)?;
                rights::peers(&change).map_err(words)?;
                encode(&match shared.change_peers(&change, 24 * PATIENCE).await {
                    Ok(_) => PeersChanged::Done,
                    Err(PeersError::Refused(refused)) => PeersChanged::Refused(refused),
                    Err(PeersError::NoPrimary(_)) => PeersChanged::NoPrimary,
                })
            }
            Kind::Report => {
                let attendance: Attendance = decode(body).map_err(words)?;
                rights::report(&from.host, &attendance.report).map_err(words)?;
                return self.answer_for_primary(kind, body).await;
            }
            Kind::GiveUp | Kind::Roll => return self.answer_for_primary(kind, body).await,
            _ => return Err(format!("{kind:?} is not for hosts that are no peers")),
        }
        .map_err(words)
    }

    /// Reports, who is given up, and what only the primary knows of the hosts go on to it. An answer comes in any
    /// case, or the line would be taken for dead.
    async fn answer_for_primary(&self, kind: Kind, body: &[u8]) -> Result<Vec<u8>, String> {
        if kind == Kind::Report {
            let attendance = decode(body).map_err(words)?;
            return encode(&self.shared.report(attendance, RELAY).await).map_err(words);
        }
        self.shared.pass_on(kind, body.to_vec(), RELAY).await
    }
}

impl Shared {
    /// What the desk goes by.
    fn outlook(&self) -> Outlook {
        Outlook {
            history: self.ours.borrow().history,
            standing: self.standing.subscribe(),
            members: self.known.subscribe(),
        }
    }
}

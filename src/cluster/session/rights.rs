//! What an attached host may say, and for whom: facts of itself only, and nothing that is the primary's.
//!
//! Pure. What an operator does through it, any host may propose: its agent has looked who asks, and nobody looks
//! again. The state judges the rest. Called by `node`.

use crate::cluster::raft::Change;
use crate::cluster::raft::membership::PeersChange;
use crate::plan::liveness::Report;
use crate::spec::HostName;
use crate::state::Command;

/// Why a host is not listened to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Overstepped {
    /// It speaks for another one.
    #[error("{from} speaks for {host}")]
    Other {
        /// Whose handshake it was.
        from: HostName,
        /// Whom it named.
        host: HostName,
    },
    /// What only peers say.
    #[error("this is for peers")]
    Peers,
}

fn own(from: &HostName, host: &HostName) -> Result<(), Overstepped> {
    match from == host {
        true => Ok(()),
        false => Err(Overstepped::Other { from: from.clone(), host: host.clone() }),
    }
}

/// Whether the host may propose this.
pub fn change(from: &HostName, change: &Change) -> Result<(), Overstepped> {
    let envelope = match change {
        Change::State(envelope) | Change::Once { envelope, .. } => envelope,
        Change::HandOut { .. } | Change::Expect { .. } | Change::Forget { .. } => {
            return Err(Overstepped::Peers);
        }
    };
    match &envelope.command {
        Command::JoinHost { host, .. } | Command::Events { host, .. } | Command::Inventory { host, .. } => {
            own(from, host)
        }
        Command::Place { .. } | Command::HostDown { .. } | Command::Settle { .. } | Command::Recover => {
            Err(Overstepped::Peers)
        }
        Command::ApplySpec { .. }
        | Command::Scale { .. }
        | Command::Pause { .. }
        | Command::Resume { .. }
        | Command::Launch { .. }
        | Command::Roll { .. }
        | Command::DrainHost { .. }
        | Command::Settings { .. }
        | Command::Upgrade { .. }
        | Command::TokenCreate { .. }
        | Command::TokenRevoke { .. } => Ok(()),
    }
}

/// Whether the host may ask for this change of the peers.
pub fn peers(change: &PeersChange) -> Result<(), Overstepped> {
    match change {
        PeersChange::Add { .. } | PeersChange::Remove { .. } | PeersChange::Promote { .. } => Ok(()),
        PeersChange::Number { .. } | PeersChange::Admit { .. } => Err(Overstepped::Peers),
    }
}

/// Whether the report is the host's own.
pub fn report(from: &HostName, report: &Report) -> Result<(), Overstepped> {
    own(from, &report.host)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::state::{Envelope, HostFacts, Target};

    fn name(text: &str) -> HostName {
        text.parse().unwrap()
    }

    #[test]
    fn a_host_speaks_for_itself_only() {
        let host = name("delta");
        let runs = BTreeMap::new();
        let (join, events, inventory) = (
            Command::JoinHost { host: host.clone(), facts: HostFacts::default() },
            Command::Events { host: host.clone(), incarnation: 1, first_seq: 1, events: Vec::new() },
            Command::Inventory { host: host.clone(), incarnation: 1, seq: 0, runs, rests: BTreeMap::new() },
        );
        for command in [join, events, inventory] {
            let envelope = Arc::new(Envelope { stamp_ms: 0, command });
            for one in [Change::State(envelope.clone()), Change::Once { key: (1, 1), envelope }] {
                assert_eq!(change(&host, &one), Ok(()));
                let other = Overstepped::Other { from: name("beta"), host: host.clone() };
                assert_eq!(change(&name("beta"), &one), Err(other));
            }
        }
        let heard = Report { host: host.clone(), incarnation: 1, seq: 1 };
        assert_eq!(report(&host, &heard), Ok(()));
        assert!(report(&name("beta"), &heard).is_err());
    }

    #[test]
    fn what_is_the_primarys_is_not_taken_from_a_host() {
        let of =
            |command| change(&name("delta"), &Change::State(Arc::new(Envelope { stamp_ms: 0, command })));
        assert_eq!(of(Command::Place { based_on: 1, changes: Vec::new() }), Err(Overstepped::Peers));
        assert_eq!(of(Command::HostDown { host: name("delta"), incarnation: 1 }), Err(Overstepped::Peers));
        assert_eq!(of(Command::Settle { since: 1 }), Err(Overstepped::Peers));
        assert_eq!(of(Command::Pause { target: Target::All }), Ok(()));
        let forget = Change::Forget { host: name("delta") };
        assert_eq!(change(&name("delta"), &forget), Err(Overstepped::Peers));
        assert_eq!(peers(&PeersChange::Admit { id: 4 }), Err(Overstepped::Peers));
        assert_eq!(peers(&PeersChange::Remove { host: name("beta") }), Ok(()));
    }
}

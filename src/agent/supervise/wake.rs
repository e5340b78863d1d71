//! What wakes the loop, and in which order: what the processes live by comes first.
//!
//! Takes nothing but what it gives back; the loop does the rest.

use std::time::Duration;

use super::{LaunchDone, Parts, Supervisor};
use crate::agent::handle::HostRequest;
use crate::agent::keeper_link::{Link, LinkError};
use crate::agent::lookup;
use crate::agent::probe::ProbeResult;
use crate::keeper::protocol::RunId;
use crate::plan::liveness::Confirm;

/// What woke the loop.
pub(super) enum Wake {
    Keeper(Result<(), LinkError>),
    Sockets,
    Probed(ProbeResult),
    LookedUp(lookup::Answer),
    State,
    Settings,
    Settled(RunId),
    Joined,
    Confirmed(Confirm),
    Asked(HostRequest),
    Launched(LaunchDone),
    Gate,
    Time,
    End,
}

impl Supervisor {
    pub(super) async fn wake(&mut self, wait: Duration) -> Wake {
        let Parts { states, requests, shutdown, gate, settings, launched, settled, attended, .. } =
            &mut self.parts;
        let link = self.link.as_mut();
        tokio::select! {
            biased;
            _ = shutdown.wait_for(|end| *end) => Wake::End,
            heard = keeper_ready(link) => Wake::Keeper(heard),
            _ = self.sockets_ready.readable() => Wake::Sockets,
            Some(answer) = self.found.recv() => Wake::LookedUp(answer),
            Some(result) = self.answers.recv() => Wake::Probed(result),
            Ok(()) = states.changed() => Wake::State,
            Some(confirm) = attended.confirms.recv() => Wake::Confirmed(confirm),
            Ok(()) = attended.incarnations.changed() => Wake::Joined,
            Ok(()) = settings.changed() => Wake::Settings,
            Some(run) = settled.recv() => Wake::Settled(run),
            // Closed without a word means that the agent is ending; `shutdown` says so, too.
            Ok(()) = gate, if !self.open => Wake::Gate,
            Some(done) = launched.recv() => Wake::Launched(done),
            Some(request) = requests.recv() => Wake::Asked(request),
            () = tokio::time::sleep(wait) => Wake::Time,
        }
    }
}

async fn keeper_ready(link: Option<&mut Link>) -> Result<(), LinkError> {
    match link {
        Some(link) => link.ready().await,
        None => std::future::pending().await,
    }
}

//! What wakes the loop, when, and in which order: what the processes live by comes first.
//!
//! Takes nothing but what it gives back; the loop does the rest.

use std::time::Duration;

use super::{KEEPER_BATCH, LaunchDone, Parts, Supervisor, TURN, moment};
use crate::agent::handle::HostRequest;
use crate::agent::keeper_link::{Link, LinkError};
use crate::agent::lookup;
use crate::agent::probe::ProbeResult;
use crate::host::{Action, Moment};
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

/// Turns that nothing but a deadline asks for are at least so far apart.
const APART: Duration = Duration::from_micros(500);
/// How often others than the keeper are heard in any case.
const OTHERS: Duration = Duration::from_millis(20);
/// As many of their questions are answered in one go.
const QUESTIONS: usize = 16;

impl Supervisor {
    /// Until when nothing is due.
    pub(super) fn next_due(&self) -> Moment {
        let now = moment();
        let mut next = self.turned.after(TURN);
        // Without a keeper nothing can be carried out, so nothing falls due.
        let own = [self.host.next_due(), self.orders.next_due(), self.succession.next_due()];
        for due in own.into_iter().flatten().filter(|_| self.met) {
            next = next.min(due);
        }
        if self.link.is_none() {
            next = next.min(self.connect_at);
        }
        next = self.later_at.into_iter().chain(self.saying.next_due()).fold(next, Moment::min);
        // What stays overdue, because only others can do something about it, is not to keep the loop turning.
        self.guard_due(now).map_or(next, |due| next.min(due)).max(self.turned.after(APART))
    }

    pub(super) async fn wake(&mut self, until: Moment) -> Wake {
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
            () = self.bell.rings(until) => Wake::Time,
        }
    }

    /// The keeper comes first, and where programs end at once and are started again it always has something to
    /// say, and so have sockets that are flooded: whoever else asks is heard as often as this.
    pub(super) fn attend_others(&mut self) {
        let now = moment();
        if now.since(self.attended) < OTHERS {
            return;
        }
        self.attended = now;
        for _ in 0..QUESTIONS {
            let Ok(request) = self.parts.requests.try_recv() else { break };
            self.answer(request);
        }
        for _ in 0..KEEPER_BATCH {
            let Ok(answer) = self.found.try_recv() else { break };
            self.hear_look_up(answer);
        }
        for _ in 0..KEEPER_BATCH {
            let Ok(result) = self.answers.try_recv() else { break };
            self.hear_answer(result);
        }
        // Exclusive runs live by these.
        while let Ok(confirm) = self.parts.attended.confirms.try_recv() {
            self.hear_confirm(&confirm);
        }
        if self.parts.attended.incarnations.has_changed().unwrap_or(false) {
            self.joined();
        }
        for _ in 0..QUESTIONS {
            let Ok(run) = self.parts.settled.try_recv() else { break };
            self.carry_out(vec![Action::Acknowledge { run }]);
        }
        for _ in 0..QUESTIONS {
            let Ok(done) = self.parts.launched.try_recv() else { break };
            self.launched(done);
        }
        if self.parts.settings.has_changed().unwrap_or(false) {
            self.take_settings();
        }
        if !self.open && self.parts.gate.try_recv().is_ok() {
            self.open_gate();
        }
        if self.parts.states.has_changed().unwrap_or(false) {
            self.desire();
        }
    }

    /// Does a further piece of what is too much for one turn: thousands of instances that are wanted at once, or not any
    /// more.
    pub(super) fn go_on(&mut self) {
        if self.grounds.is_none() {
            self.desire();
        }
        self.send_orders();
    }

    /// There is more of it.
    pub(super) fn is_behind(&self) -> bool {
        self.open && self.met && (self.grounds.is_none() || self.orders.has_queue())
    }

    /// What is wanted is known: from now on runs are started and stopped.
    pub(super) fn open_gate(&mut self) {
        self.open = true;
        // What is not wanted any more is withdrawn before it goes.
        self.desire();
        self.send_orders();
    }
}

async fn keeper_ready(link: Option<&mut Link>) -> Result<(), LinkError> {
    match link {
        Some(link) => link.ready().await,
        None => std::future::pending().await,
    }
}

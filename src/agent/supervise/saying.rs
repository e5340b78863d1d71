//! What runs say about themselves, on its way to the other hosts: what changed, at most once a second.
//!
//! Owns which runs have said something since the last time. What they say is the host core's; who hears it is
//! [`crate::cluster::statuses`]'s.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Supervisor;
use crate::client::message::Player;
use crate::host::Moment;
use crate::http::view::PlayersView;
use crate::spec::InstanceId;
use crate::status::{PLAYER_LIST, Summary};

/// No run is told of more often.
const PACE: Duration = Duration::from_secs(1);
/// The longest list of players, in bytes of JSON.
const MAX_LIST: usize = 16 * 1024;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Saying {
    /// These have said something.
    untold: BTreeSet<InstanceId>,
    /// Before then nothing is told.
    not_before: Moment,
}

impl Saying {
    /// When something is to be told.
    pub(super) fn next_due(&self) -> Option<Moment> {
        (!self.untold.is_empty()).then_some(self.not_before)
    }
}

impl Supervisor {
    /// The instance says something about itself that the others are to know.
    pub(super) fn has_said(&mut self, instance: &InstanceId) {
        if !self.saying.untold.contains(instance) {
            self.saying.untold.insert(instance.clone());
        }
    }

    /// Tells what was said, unless that was done just now.
    pub(super) fn tell_status(&mut self, now: Moment) {
        if self.saying.next_due().is_none_or(|due| due > now) {
            return;
        }
        self.saying.not_before = now.after(PACE);
        let said = std::mem::take(&mut self.saying.untold).into_iter();
        let lines = said.filter_map(|id| {
            let instance = self.host.instance(&id)?;
            let run = instance.run.as_ref()?.id;
            Some((id, run, Some(Summary::of(&instance.status))))
        });
        self.parts.statuses.note(lines);
    }

    /// Runs that have ended say nothing any more.
    pub(super) fn strike_out_ended(&self) {
        let board = self.parts.statuses.board();
        let lives = |id: &InstanceId, run| {
            self.host.instance(id).and_then(|instance| instance.run.as_ref()).is_some_and(|r| r.id == run)
        };
        let ended = board.own().lines().filter(|(id, line)| !lives(id, line.run));
        self.parts.statuses.note(ended.map(|(id, line)| (id.clone(), line.run, None)));
    }

    /// Who plays there, as far as the run says and as many as go into an answer; `None`: there is no such run here.
    pub(super) fn players_of(&self, id: &InstanceId) -> Option<PlayersView> {
        let instance = self.host.instance(id)?;
        let run = instance.run.as_ref()?.id;
        let list = instance.status.get(PLAYER_LIST).and_then(|list| list.as_array());
        let list: Vec<Player> =
            list.into_iter().flatten().filter_map(|one| serde_json::from_value(one.clone()).ok()).collect();
        let told = list.len() as u64;
        let mut size = 0;
        let fits = |player: &Player| {
            size += serde_json::to_vec(player).map_or(MAX_LIST, |json| json.len() + 1);
            size <= MAX_LIST
        };
        let list: Vec<Player> = list.into_iter().take_while(fits).collect();
        Some(PlayersView {
            instance: id.clone(),
            host: self.parts.name.clone(),
            run: run.0,
            players: instance.status.get("players").and_then(|players| players.as_u64()),
            truncated: (list.len() as u64) < told,
            player_list: list,
        })
    }
}

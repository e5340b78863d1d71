//! What runs say about themselves, on its way to the other hosts: what changed, at most once a second.
//!
//! Owns which runs have said something since the last time. What they say is the host core's; who hears it is
//! [`crate::cluster::statuses`]'s.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::Supervisor;
use crate::client::message::Player;
use crate::host::Moment;
use crate::http::view::PlayersView;
use crate::spec::InstanceId;
use crate::status::{PLAYER_LIST, Summary};

/// No run is told of more often.
const PACE: Duration = Duration::from_secs(1);
/// The longest list of players, in bytes of JSON: with what stands around it 16 KiB.
const MAX_LIST: usize = 16 * 1024 - 512;

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
        let ended: Vec<_> = ended.map(|(id, line)| (id.clone(), line.run, None)).collect();
        drop(board);
        self.parts.statuses.note(ended);
    }

    /// Who plays there, as far as the run says and as many as go into an answer; `None`: there is no such run here.
    pub(super) fn players_of(&self, id: &InstanceId) -> Option<PlayersView> {
        let instance = self.host.instance(id)?;
        let run = instance.run.as_ref()?.id;
        let (player_list, truncated) = player_list(instance.status.get(PLAYER_LIST));
        Some(PlayersView {
            instance: id.clone(),
            host: self.parts.name.clone(),
            run: run.0,
            players: instance.status.get("players").and_then(Value::as_u64),
            player_list,
            truncated,
        })
    }
}

/// As many as go into an answer, and whether there are more.
fn player_list(said: Option<&Value>) -> (Vec<Player>, bool) {
    let all = said.and_then(Value::as_array).into_iter().flatten();
    let mut all = all.filter_map(|player| Player::deserialize(player).ok());
    let (mut list, mut size) = (Vec::new(), 0);
    for player in all.by_ref() {
        size += serde_json::to_vec(&player).map_or(MAX_LIST, |json| json.len() + 1);
        if size > MAX_LIST {
            return (list, true);
        }
        list.push(player);
    }
    (list, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_players_is_cut_and_that_is_told() {
        let ann = serde_json::json!({ "name": "ann", "score": 3 });
        assert_eq!(player_list(None), (vec![], false));
        let some = serde_json::json!([ann, { "nickname": "bob" }]);
        let player = Player { name: "ann".to_owned(), score: Some(3), ..Player::default() };
        assert_eq!(player_list(Some(&some)), (vec![player], false));
        let many = |count: usize| Value::Array((0..count).map(|_| ann.clone()).collect());
        let (list, truncated) = player_list(Some(&many(5_000)));
        let size = serde_json::to_vec(&list).unwrap().len();
        assert!(truncated && size <= MAX_LIST && size > MAX_LIST - 100, "{size}");
        assert_eq!(player_list(Some(&many(list.len()))), (list, false));
    }
}

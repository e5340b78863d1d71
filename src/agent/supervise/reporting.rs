//! What the loop reports: events and inventories to the replicated state, players to the planner, primaries to people.
//!
//! Never waits: what does not fit the queue is made good by an inventory.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Supervisor;
use crate::agent::replica::wall_ms;
use crate::agent::reporter::Report;
use crate::plan::Liveness;
use crate::spec::InstanceId;

impl Supervisor {
    pub(super) fn report(&mut self, report: Report) {
        if self.parts.reports.try_send(report).is_err() {
            self.reports_lost = true;
        }
    }

    /// What is to be written down is, and what nobody asks for any more is forgotten.
    pub(super) fn tend_chronicle(&mut self) {
        let host = &self.host;
        self.parts.chronicle.prune(|id| host.instance(id).is_some());
        self.parts.chronicle.follow_primary(wall_ms());
    }

    /// How many players there are where.
    pub(super) fn counted_players(&self) -> BTreeMap<InstanceId, u32> {
        let told = self.host.instances().filter_map(|instance| {
            let players = instance.status.get("players")?.as_u64()?;
            Some((instance.id.clone(), u32::try_from(players).unwrap_or(u32::MAX)))
        });
        told.collect()
    }

    /// Tells the planner of a host alone, when it has changed.
    pub(super) fn tell_planner(&self) {
        let liveness = Liveness { players: self.counted_players() };
        self.parts.liveness.send_if_modified(|held| {
            let changed = **held != liveness;
            if changed {
                *held = Arc::new(liveness);
            }
            changed
        });
    }

    /// An inventory makes good what the full queue did not take.
    pub(super) fn repeat_lost_reports(&mut self) {
        if self.reports_lost && self.parts.reports.capacity() > 0 {
            self.reports_lost = false;
            self.report_inventory();
        }
    }

    pub(super) fn report_inventory(&mut self) {
        self.report(Report::Inventory { runs: self.host.inventory(), rests: self.host.rests() });
    }
}

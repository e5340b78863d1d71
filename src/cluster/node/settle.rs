//! Becoming a peer: from a fresh disk to a member of the cluster, without a manual step.
//!
//! Owns the order: look around, decide ([`super::identity::decide`]), write the number down, start Raft, and
//! only then found the cluster or ask to be admitted. Each step may be the last one before a crash: the next
//! start goes on from what is written down.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::identity::{Decision, Founding, Identity, Probed, decide};
use super::service::JoinAnswer;
use super::{OpenError, Outlets, Shared, seat};
use crate::cluster::raft::config;
use crate::cluster::raft::log_store::LogStore;
use crate::cluster::raft::log_store::disk::{Disk, Key};
use crate::cluster::raft::machine::Machine;
use crate::cluster::raft::membership::{PeersChange, Raft};
use crate::cluster::raft::network::Network;
use crate::cluster::wire::{DecodeError, Kind, Purpose, Target, decode, encode};
use crate::spec::HostName;

/// Between two looks around.
const AGAIN: Duration = Duration::from_millis(100);
/// What one question may take.
const QUESTION: Duration = Duration::from_millis(1500);
/// What the catching up of a newcomer may take.
const ADMISSION: Duration = Duration::from_secs(150);

/// What the other peers of the file answer.
struct Around {
    heard: BTreeMap<HostName, Probed>,
    /// Who does not answer, and why.
    silent: BTreeMap<HostName, String>,
    /// What those wait for that do, in their own words; a build that does not tell it is not in here.
    told: BTreeMap<HostName, String>,
}

impl Around {
    fn reasons(&self) -> String {
        let silent: Vec<String> = self.silent.iter().map(|(host, why)| format!("{host}: {why}")).collect();
        if silent.is_empty() { String::new() } else { format!(" ({})", silent.join("; ")) }
    }
}

/// The body of a probe that asks as well what its answerer waits for. Without it only the record is answered, which is all
/// that older builds take; and they look at no body.
pub(super) const ASKS_WHY: &[u8] = &[1];

/// The record of the disk; a fresh disk is given one.
pub(super) async fn identity(disk: &Arc<Disk>) -> io::Result<Identity> {
    if let Some(bytes) = disk.get(Key::Identity)? {
        return Ok(decode(&bytes)?);
    }
    let identity = Identity::Fresh { token: fastrand::u64(..) };
    write(disk, &identity).await?;
    Ok(identity)
}

async fn write(disk: &Disk, identity: &Identity) -> io::Result<()> {
    disk.put(Key::Identity, encode(identity)?).await
}

/// See the module.
pub(super) struct Settler {
    shared: Arc<Shared>,
    outlets: Option<Outlets>,
    /// What was said last, so that it is said once.
    said: String,
}

impl Settler {
    pub(super) fn new(shared: Arc<Shared>, outlets: Outlets) -> Settler {
        Settler { shared, outlets: Some(outlets), said: String::new() }
    }

    /// Starts Raft if this disk has a number that counts, and founds at once where nobody else is asked. `None`: done.
    pub(super) async fn resume(mut self) -> Result<Option<Settler>, OpenError> {
        let identity = self.shared.identity.borrow().clone();
        let alone = self.shared.settings.peers.len() <= 1;
        match identity {
            Identity::Peer { id, .. } => {
                let void = seat::was_void(&self.shared.disk, &identity).map_err(OpenError::Identity)?;
                if void || self.shared.is_void(id).await {
                    return Err(OpenError::Void { id });
                }
                self.start().await?;
            }
            Identity::Fresh { .. } if alone => {
                let Decision::Found(founding) = self.decide(&BTreeMap::new()) else {
                    return Ok(Some(self));
                };
                self.become_founder(founding).await?;
            }
            Identity::Fresh { .. } => return Ok(Some(self)),
        }
        // A founder that crashed before it founded, a newcomer that was not admitted yet.
        let settled = self.finish().await;
        Ok((!settled).then_some(self))
    }

    /// Goes on until this host is a peer.
    pub(super) async fn run(mut self) {
        while self.shared.raft().is_none() {
            let around = self.look_around().await;
            if let Err(error) = self.step(&around).await {
                self.wait(&format!("cannot become a peer: {error}"), &around.reasons());
            }
            tokio::time::sleep(AGAIN).await;
        }
        while !self.finish().await {
            self.explain().await;
            tokio::time::sleep(AGAIN).await;
        }
        // It may have been admitted without the answer, and a cluster is founded by another peer.
        self.shared.unsettled.send_replace(None);
    }

    fn say(&mut self, text: &str) {
        if self.said != text {
            tracing::info!(host = %self.shared.settings.host, "{text}");
            self.said = text.to_owned();
        }
    }

    /// Says why this host is no peer yet. What is `more`, who is silent and why, changes all the time: that is for whoever
    /// asks.
    fn wait(&mut self, why: &str, more: &str) {
        self.say(why);
        self.shared.unsettled.send_replace(Some(format!("{why}{more}")));
    }

    fn wait_for(&mut self, founder: &HostName, around: &Around) {
        let founded = format!("the cluster is founded by {founder}, which");
        if around.silent.contains_key(founder) {
            return self.wait(&format!("{founded} does not answer"), &around.reasons());
        }
        match around.told.get(founder) {
            Some(why) => self.wait(&format!("{founded} waits itself"), &format!(": {why}")),
            None => {
                self.wait(&format!("{founded} has not done so yet"), "; `bigbrother status` there says why")
            }
        }
    }

    async fn step(&mut self, around: &Around) -> Result<(), OpenError> {
        match self.decide(&around.heard) {
            Decision::Wait(why) => self.wait(&why, &around.reasons()),
            Decision::Await(founder) => self.wait_for(&founder, around),
            Decision::Take(id, founding) => self.become_peer(id, founding.history, Some(founding)).await?,
            Decision::Found(founding) => self.become_founder(founding).await?,
            Decision::Join(hosts) => {
                for host in hosts {
                    match self.ask_for_a_number(&host).await {
                        Ok((id, history)) => return self.become_peer(id, history, None).await,
                        Err(why) => {
                            let told = around.told.get(&host);
                            let told = told.map(|told| format!(" ({host}: {told})")).unwrap_or_default();
                            let why = format!("{host} gives it no number: {why}");
                            self.wait(&why, &(told + &around.reasons()));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn decide(&self, heard: &BTreeMap<HostName, Probed>) -> Decision {
        let settings = &self.shared.settings;
        let Identity::Fresh { token } = *self.shared.identity.borrow() else {
            return Decision::Wait(String::new());
        };
        let alone = BTreeMap::from([(settings.host.clone(), settings.listen.clone())]);
        let peers = if settings.peers.is_empty() { &alone } else { &settings.peers };
        decide(&settings.host, token, peers, heard, fastrand::u64(1..))
    }

    async fn look_around(&self) -> Around {
        let question = (Kind::Probe, ASKS_WHY.to_vec());
        let asked = self.shared.ask_each(self.shared.settings.others(), question, QUESTION);
        let (mut heard, mut silent, mut told) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for (host, answer) in asked.join_all().await {
            let answer = answer.map_err(|error| error.to_string());
            match answer.and_then(|answer| probed(&answer).map_err(|error| error.to_string())) {
                Ok((probed, why)) => {
                    told.extend(why.map(|why| (host.clone(), why)));
                    heard.insert(host, probed);
                }
                Err(why) => drop(silent.insert(host, why)),
            }
        }
        Around { heard, silent, told }
    }

    async fn ask_for_a_number(&self, host: &HostName) -> Result<(u64, u64), String> {
        let settings = &self.shared.settings;
        let address = settings.peers.get(host).cloned().unwrap_or_default();
        let own = settings.peers.get(&settings.host).unwrap_or(&settings.listen);
        let target = Target { host: host.clone(), id: None, address };
        let body = encode(&(&settings.host, own)).map_err(|error| error.to_string())?;
        let asked = self.shared.exchange.call(&target, Purpose::Probe, Kind::Join, body, 2 * QUESTION).await;
        let answer: JoinAnswer =
            decode(&asked.map_err(|error| error.to_string())?).map_err(|e| e.to_string())?;
        answer.map_err(|refused| refused.to_string())
    }

    async fn become_founder(&mut self, founding: Founding) -> Result<(), OpenError> {
        let host = &self.shared.settings.host;
        let seat = founding.members.iter().find(|(_, founder)| founder.peer.name == host.as_str());
        let id = seat.map_or(1, |(id, _)| *id);
        self.become_peer(id, founding.history, Some(founding)).await
    }

    async fn become_peer(
        &mut self,
        id: u64,
        history: u64,
        founding: Option<Founding>,
    ) -> Result<(), OpenError> {
        let identity = Identity::Peer { id, history, founding };
        write(&self.shared.disk, &identity).await.map_err(OpenError::Identity)?;
        self.say(&format!("this host is peer {id} of the cluster"));
        self.shared.unsettled.send_replace(None);
        self.shared.ours.send_modify(|ours| (ours.id, ours.history) = (Some(id), Some(history)));
        self.shared.identity.send_replace(identity);
        // Lines that were dialled without a number are not asked any more.
        self.shared.exchange.keep(|_| false);
        self.start().await
    }

    async fn start(&mut self) -> Result<(), OpenError> {
        let shared = &self.shared;
        let (Some(outlets), Some(id)) = (self.outlets.take(), shared.ours.borrow().id) else { return Ok(()) };
        let senseless =
            |reason: String| OpenError::Raft { path: shared.settings.data_dir.join("raft"), reason };
        let settings = config(&shared.settings.cluster, shared.settings.snapshot_every)
            .validate()
            .map_err(|error| senseless(error.to_string()))?;
        let log = LogStore::new(shared.disk.clone())?;
        let machine = Machine::new(shared.shelf(), outlets.states, outlets.applies).telling(outlets.feed);
        let machine = machine.recording(outlets.trail);
        let network = Network::new(id, shared.exchange.clone(), shared.quorum.subscribe());
        let raft = Raft::new(id, Arc::new(settings), network, log, machine).await;
        let raft = raft.map_err(|error| senseless(error.to_string()))?;
        shared.raft.send_replace(Some(raft));
        Ok(())
    }

    /// Founds, or asks to be admitted; true when nothing is left to do.
    async fn finish(&mut self) -> bool {
        let Some(raft) = self.shared.raft() else { return false };
        let identity = self.shared.identity.borrow().clone();
        let (Identity::Peer { id, founding, .. }, Ok(false)) = (identity, raft.is_initialized().await) else {
            return true;
        };
        match founding {
            // The first founder founds; the others hear of it through the log.
            Some(founding) if founding.members.keys().next() == Some(&id) => {
                if let Err(error) = raft.initialize(founding.peers()).await {
                    self.wait(&format!("cannot found the cluster: {error}"), "");
                }
                false
            }
            Some(_) => false,
            None => {
                let change = PeersChange::Admit { id };
                match self.shared.change_peers(&change, ADMISSION).await {
                    Ok(_) => self.say("admitted to the cluster"),
                    Err(error) => self.wait(&format!("not admitted yet: {error}"), ""),
                }
                false
            }
        }
    }

    /// Says what a peer waits for whose number is that of a founding which was not carried out yet.
    async fn explain(&mut self) {
        let Identity::Peer { id, founding: Some(founding), .. } = self.shared.identity.borrow().clone()
        else {
            return;
        };
        let Some((_, first)) = founding.first().filter(|(first, _)| *first != id) else { return };
        let Ok(founder) = first.peer.name.parse::<HostName>() else { return };
        let around = self.look_around().await;
        if !around.heard.get(&founder).is_some_and(|heard| founding.has_lost_its_founder(heard)) {
            return self.wait_for(&founder, &around);
        }
        let folder = self.shared.settings.data_dir.join("raft");
        self.wait(
            &format!(
                "{founder} was to found the cluster, and lost its disk before this host heard of the founding. If all other \
                 peers say the same, there is no state yet that could be lost: on each of them stop the agent, move {} \
                 away, and start the agent again",
                folder.display()
            ),
            &around.reasons(),
        );
    }
}

/// What was answered to [`ASKS_WHY`]. An older build tells its record only.
fn probed(answer: &[u8]) -> Result<(Probed, Option<String>), DecodeError> {
    decode(answer).or_else(|_| Ok((decode(answer)?, None)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_older_build_answers_is_heard_too() {
        let probed = Probed { identity: Identity::Fresh { token: 4 }, peers: BTreeMap::new() };
        let told = (probed.clone(), Some("it waits".to_owned()));
        assert_eq!(super::probed(&encode(&told).unwrap()).unwrap(), told);
        assert_eq!(super::probed(&encode(&probed).unwrap()).unwrap(), (probed, None));
        assert!(super::probed(b"rubbish").is_err());
    }
}

//! What the keeper holds for an instance over its runs: cgroup, FIFOs, sockets.
//!
//! Owns these descriptors until the agent releases the instance. Called by the loop.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::cgroup::Cgroup;
use super::logs::Fifos;
use super::notify::Kept;
use crate::spec::InstanceId;

/// One instance.
pub struct Instance {
    /// Its number in this keeper, for epoll.
    pub number: u64,
    /// Its cgroup, once it had a run.
    pub cgroup: Option<Cgroup>,
    /// Its outputs.
    pub fifos: Fifos,
    /// The process socket's listener and the notify socket.
    pub held: Option<(OwnedFd, OwnedFd)>,
    /// What was read from the notify socket while no agent did.
    pub kept: Kept,
}

/// All instances.
pub struct Instances {
    all: BTreeMap<InstanceId, Instance>,
    names: BTreeMap<u64, InstanceId>,
    next: u64,
    fifos: PathBuf,
}

impl Instances {
    /// None yet; FIFOs will lie in this folder.
    pub fn new(fifos: &Path) -> Self {
        Instances { all: BTreeMap::new(), names: BTreeMap::new(), next: 1, fifos: fifos.to_owned() }
    }

    /// The instance, made if need be.
    pub fn make(&mut self, id: &InstanceId) -> &mut Instance {
        if !self.all.contains_key(id) {
            self.names.insert(self.next, id.clone());
        }
        let (next, fifos) = (&mut self.next, &self.fifos);
        self.all.entry(id.clone()).or_insert_with(|| {
            let number = *next;
            *next += 1;
            let fifos = Fifos::new(fifos, id);
            Instance { number, cgroup: None, fifos, held: None, kept: Kept::default() }
        })
    }

    /// The instance.
    pub fn get(&self, id: &InstanceId) -> Option<&Instance> {
        self.all.get(id)
    }

    /// The instance, to change.
    pub fn get_mut(&mut self, id: &InstanceId) -> Option<&mut Instance> {
        self.all.get_mut(id)
    }

    /// The instance with this number.
    pub fn numbered(&mut self, number: u64) -> Option<&mut Instance> {
        self.all.get_mut(self.names.get(&number)?)
    }

    /// Forgets one.
    pub fn remove(&mut self, id: &InstanceId) -> Option<Instance> {
        let instance = self.all.remove(id)?;
        self.names.remove(&instance.number);
        Some(instance)
    }

    /// All, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&InstanceId, &Instance)> {
        self.all.iter()
    }

    /// All, in order, to change.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&InstanceId, &mut Instance)> {
        self.all.iter_mut()
    }
}

//! What the clients have asked and been told, and whether one order explains it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use stateright::semantics::register::{Register, RegisterOp, RegisterRet};
use stateright::semantics::{ConsistencyTester, LinearizabilityTester};

pub const LAW: &str = "a history is not linearizable";

/// What is written and read. Each is a history of its own, which keeps them small enough to be searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// The spec: its build.
    Spec,
    /// The scale of a process.
    Scale,
    /// The run of a host's instance in the directory.
    Run(u64),
}

#[derive(Clone, Debug)]
struct Operation {
    client: u64,
    key: Key,
    /// `None`: a read.
    writes: Option<u64>,
    begun: u64,
    /// When, and what was read.
    ended: Option<(u64, u64)>,
}

#[derive(Default)]
struct Inner {
    clock: u64,
    operations: Vec<Operation>,
    /// Clients that are done.
    resigned: u64,
}

#[derive(Clone, Default)]
pub struct History(Arc<Mutex<Inner>>);

impl History {
    pub fn resign(&self) {
        self.0.lock().unwrap().resigned += 1;
    }

    pub fn resigned(&self) -> u64 {
        self.0.lock().unwrap().resigned
    }

    pub fn begin(&self, client: u64, key: Key, writes: Option<u64>) -> usize {
        let Inner { clock, operations, .. } = &mut *self.0.lock().unwrap();
        *clock += 1;
        operations.push(Operation { client, key, writes, begun: *clock, ended: None });
        operations.len() - 1
    }

    pub fn end(&self, operation: usize, read: u64) {
        let Inner { clock, operations, .. } = &mut *self.0.lock().unwrap();
        *clock += 1;
        operations[operation].ended = Some((*clock, read));
    }

    /// Names the history among others.
    pub fn digest(&self) -> u64 {
        let operations = &self.0.lock().unwrap().operations;
        let words = operations.iter().flat_map(|o| {
            let (ended, read) = o.ended.unwrap_or_default();
            [o.client, o.writes.unwrap_or(0), o.begun, ended, read]
        });
        words.fold(0, |digest: u64, word| (digest ^ word).wrapping_mul(0x0100_0000_01b3))
    }

    pub fn check(&self) -> Result<(), String> {
        let mut keys: BTreeMap<Key, Vec<Operation>> = BTreeMap::new();
        for operation in &self.0.lock().unwrap().operations {
            // A read that was not answered says nothing.
            if operation.writes.is_some() || operation.ended.is_some() {
                keys.entry(operation.key).or_default().push(operation.clone());
            }
        }
        keys.into_iter().try_for_each(|(key, operations)| check_one(key, &operations))
    }
}

fn check_one(key: Key, operations: &[Operation]) -> Result<(), String> {
    let mut moments = BTreeMap::new();
    for (n, operation) in operations.iter().enumerate() {
        moments.insert(operation.begun, (n, None));
        if let Some((ended, read)) = operation.ended {
            moments.insert(ended, (n, Some(read)));
        }
    }
    let mut tester = LinearizabilityTester::new(Register(0u64));
    // A client that was not answered goes on as another.
    let mut names: BTreeMap<usize, u64> = BTreeMap::new();
    let mut busy: BTreeMap<u64, u64> = BTreeMap::new();
    for (n, end) in moments.into_values() {
        let operation = &operations[n];
        match end {
            None => {
                let turn = busy.entry(operation.client).or_default();
                let name = operation.client + 1_000 * *turn;
                if operation.ended.is_none() {
                    *turn += 1;
                }
                names.insert(n, name);
                let asked = operation.writes.map_or(RegisterOp::Read, RegisterOp::Write);
                tester.on_invoke(name, asked)?;
            }
            Some(read) => {
                let told = operation.writes.map_or(RegisterRet::ReadOk(read), |_| RegisterRet::WriteOk);
                tester.on_return(names[&n], told)?;
            }
        }
    }
    match tester.is_consistent() {
        true => Ok(()),
        false => Err(format!("{LAW}: {key:?}: {operations:#?}")),
    }
}

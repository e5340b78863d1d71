//! Questions of processes: hello, find, watch, unwatch, launch. Answered from the directory that this host holds.
//!
//! Owns what each watcher was last told, so that a change of the state becomes the changes that it has not
//! seen. Launches go to the replicated state over the other runtime and come back as [`LaunchDone`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::sync::mpsc;

use super::{Supervisor, moment};
use crate::agent::handle::{AskError, Handle};
use crate::client::message::{
    Fault, Found, Hello, Launch, Launched, Listing, MAX_WATCHES, PROTOCOL, Phase as Said, Port, WatchChange,
    WatchEvent, Welcome,
};
use crate::host::Happening;
use crate::keeper::protocol::RunId;
use crate::process_api::rpc::{Call, Id, Outgoing};
use crate::process_api::socket::ConnId;
use crate::spec::{HeartbeatMode, InstanceId, ProcessName};
use crate::state::{Command, Rejected, Response, State};
use crate::status::Summary;

/// A launch, which the process may ask for, on its way to the replicated state.
#[derive(Debug)]
pub struct LaunchOrder {
    /// Who asked, and on which connection.
    pub by: (InstanceId, ConnId),
    /// To be answered.
    pub id: Option<Id>,
    /// What.
    pub launch: Launch,
}

/// What came of a [`LaunchOrder`].
#[derive(Debug)]
pub struct LaunchDone {
    /// Who asked, and on which connection.
    pub by: (InstanceId, ConnId),
    /// To be answered.
    pub id: Option<Id>,
    /// The instance, or why there is none.
    pub result: Result<InstanceId, Fault>,
}

/// The runs of a process by instance.
type Listings = BTreeMap<InstanceId, Listing>;

/// What a connection watches, and what it was last told of each process.
#[derive(Debug, Default)]
pub(super) struct Watches(BTreeMap<ProcessName, Listings>);

impl Supervisor {
    pub(super) fn hear_question(
        &mut self,
        instance: &InstanceId,
        conn: Option<ConnId>,
        id: Option<Id>,
        call: Call,
    ) {
        let Some(conn) = conn else { return };
        match call {
            Call::Hello(hello) => self.greet(instance, conn, id, &hello),
            Call::Find(find) => {
                let state = self.parts.states.borrow().clone();
                let mut listings = self.listings(&state, &find.process);
                listings.retain(|_, listing| listing.ready || !find.ready);
                self.add_status(&mut listings);
                let found = Found { listings: listings.into_values().collect() };
                self.reply(instance, conn, id, |id| Outgoing::answer(id, &found));
            }
            Call::Watch(watch) => self.begin_watch(instance, conn, id, watch.process),
            Call::Unwatch(watch) => {
                if let Some(watches) = self.watchers.get_mut(&(instance.clone(), conn)) {
                    watches.0.remove(&watch.process);
                }
                self.reply(instance, conn, id, |id| Outgoing::answer(id, &()));
            }
            Call::Launch(launch) => self.order_launch(instance, conn, id, *launch),
            // The plain calls are happenings (hearing.rs).
            _ => {}
        }
    }

    fn reply(
        &mut self,
        instance: &InstanceId,
        conn: ConnId,
        id: Option<Id>,
        message: impl FnOnce(Id) -> Outgoing,
    ) {
        if let Some(id) = id {
            // A process that has gone away needs no answer.
            let _ = self.sockets.send(instance, conn, &message(id));
        }
    }

    fn greet(&mut self, instance: &InstanceId, conn: ConnId, id: Option<Id>, hello: &Hello) {
        let Some(known) = self.host.instance(instance) else { return };
        let beat = known.process.as_ref().map(|process| &process.heartbeat);
        let beat = beat.filter(|beat| beat.mode == HeartbeatMode::Native);
        let welcome = Welcome {
            protocol: PROTOCOL,
            instance: instance.clone(),
            host: self.parts.name.clone(),
            run: known.run.as_ref().map_or(0, |run| run.id.0),
            heartbeat_ms: beat.map_or(0, |b| u64::try_from(b.interval.as_millis()).unwrap_or(u64::MAX)),
        };
        self.reply(instance, conn, id, |id| Outgoing::answer(id, &welcome));
        self.greeted.entry(instance.clone()).or_default().insert(conn);
        let mut happenings = vec![Happening::Connected(true)];
        match hello.state {
            Said::Starting => {}
            Said::Ready => happenings.push(Happening::Ready),
            Said::Draining => happenings.extend([Happening::Ready, Happening::Draining]),
        }
        for happening in happenings {
            let actions = self.host.on(instance, happening, self.now());
            self.carry_out(actions);
        }
    }

    pub(super) fn hear_goodbye(&mut self, instance: &InstanceId, conn: Option<ConnId>) {
        let Some(conn) = conn else { return };
        self.watchers.remove(&(instance.clone(), conn));
        let Some(greeted) = self.greeted.get_mut(instance) else { return };
        if greeted.remove(&conn) && greeted.is_empty() {
            self.greeted.remove(instance);
            let actions = self.host.on(instance, Happening::Connected(false), self.now());
            self.carry_out(actions);
        }
    }

    // ---- find and watch

    fn listings(&self, state: &State, process: &ProcessName) -> Listings {
        let own = state.directory.iter().filter(|(id, _)| id.process == *process);
        own.map(|(id, entry)| {
            let port = |(protocol, port)| Port { protocol, port };
            let listing = Listing {
                instance: id.clone(),
                host: entry.host.clone(),
                address: entry.address.clone(),
                run: entry.run.0,
                ready: entry.ready.is_some(),
                ports: entry.ports.iter().map(|(name, p)| (name.to_owned(), port(p))).collect(),
                status: None,
                status_age_ms: None,
            };
            (id.clone(), listing)
        })
        .collect()
    }

    /// What is known here of what the runs say: those of other hosts, too.
    fn add_status(&self, listings: &mut Listings) {
        let (board, now) = (self.parts.statuses.look(), moment());
        for (id, listing) in listings {
            let told = board.of(&listing.host, id, RunId(listing.run), now);
            let told = told.map(|(said, age)| (said.clone(), age));
            let said = match listing.host == self.parts.name {
                // It may have said something else since the others were told.
                true => self.host.instance(id).map(|instance| Summary::of(&instance.status)).map(|said| {
                    let age = told.filter(|(known, _)| *known == said).map_or(Duration::ZERO, |told| told.1);
                    (said, age)
                }),
                false => told,
            };
            let said = said.filter(|(said, _)| !said.is_empty());
            listing.status = said.as_ref().map(|(said, _)| Box::new(said.shown()));
            listing.status_age_ms = said.map(|(_, age)| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        }
    }

    /// One watch a process: the same again starts it anew with a snapshot.
    fn begin_watch(&mut self, instance: &InstanceId, conn: ConnId, id: Option<Id>, process: ProcessName) {
        let watcher = (instance.clone(), conn);
        let watches = self.watchers.get(&watcher);
        if watches.is_some_and(|w| w.0.len() >= MAX_WATCHES && !w.0.contains_key(&process)) {
            let why = format!("{MAX_WATCHES} processes are watched on this connection: unwatch one");
            let id = id.unwrap_or(Id::NULL);
            return self.reply(instance, conn, Some(id), |id| Outgoing::refused(id, Fault::WATCHES, why));
        }
        self.reply(instance, conn, id, |id| Outgoing::answer(id, &()));
        let state = self.parts.states.borrow().clone();
        let seen = self.listings(&state, &process);
        let snapshot = WatchChange::Snapshot { listings: seen.values().cloned().collect() };
        let event = WatchEvent { process: process.clone(), change: snapshot };
        if self.sockets.send(instance, conn, &Outgoing::Watch(Box::new(event))) {
            self.watchers.entry(watcher).or_default().0.insert(process, seen);
        }
    }

    /// Tells every watcher what it has not seen yet.
    pub(super) fn tell_watchers(&mut self, state: &State) {
        let mut watchers = std::mem::take(&mut self.watchers);
        let watched = watchers.values().flat_map(|watches| watches.0.keys());
        let watched: BTreeSet<ProcessName> = watched.cloned().collect();
        for process in &watched {
            let now = self.listings(state, process);
            // One that does not take what it is told is gone or will be.
            watchers.retain(|(instance, conn), watches| {
                let Some(seen) = watches.0.get_mut(process) else { return true };
                let changes = changes(seen, &now);
                if !changes.is_empty() {
                    seen.clone_from(&now);
                }
                changes.into_iter().all(|change| {
                    let event = WatchEvent { process: process.clone(), change };
                    self.sockets.send(instance, *conn, &Outgoing::Watch(Box::new(event)))
                })
            });
        }
        self.watchers = watchers;
    }

    // ---- launch

    /// What a process may not launch goes no further: however much it asks for, it takes no place of the others.
    fn order_launch(&mut self, instance: &InstanceId, conn: ConnId, id: Option<Id>, launch: Launch) {
        let process = self.host.instance(instance).and_then(|known| known.process.as_ref());
        if !process.is_some_and(|process| process.launch.contains(&launch.process)) {
            let refused = AskError::NotAllowed;
            let why = format!("{} may not launch {}: {refused}", instance.process, launch.process);
            self.parts.audit.not_launched(&self.parts.name, instance, &launch, refused);
            return self.reply(instance, conn, id, |id| Outgoing::refused(id, Fault::NOT_ALLOWED, why));
        }
        let order = LaunchOrder { by: (instance.clone(), conn), id, launch };
        if let Err(refused) = self.parts.launches.try_send(order) {
            let order = refused.into_inner();
            let why = "too many launches are under way; try again";
            self.reply(instance, conn, order.id, |id| Outgoing::refused(id, Fault::BUSY, why));
        }
    }

    pub(super) fn launched(&mut self, done: LaunchDone) {
        let (instance, conn) = done.by;
        self.reply(&instance, conn, done.id, |id| match done.result {
            Ok(instance) => Outgoing::answer(id, &Launched { instance }),
            Err(fault) => Outgoing::refused(id, fault.code, fault.message),
        });
    }
}

/// Proposes the launches that processes ask for, on the second runtime.
pub async fn carry_launches(
    handle: Handle,
    mut orders: mpsc::Receiver<LaunchOrder>,
    done: mpsc::Sender<LaunchDone>,
) {
    while let Some(LaunchOrder { by, id, launch }) = orders.recv().await {
        let result = match propose(&handle, launch.clone()).await {
            Ok(instance) => {
                handle.audit.launched(&handle.host, &by.0, &launch).await;
                Ok(instance)
            }
            Err(error) => {
                let fault = Fault::new(code(&error), error.to_string());
                handle.audit.not_launched(&handle.host, &by.0, &launch, error);
                Err(fault)
            }
        };
        if done.send(LaunchDone { by, id, result }).await.is_err() {
            return;
        }
    }
}

async fn propose(handle: &Handle, launch: Launch) -> Result<InstanceId, AskError> {
    let Launch { process, args, key } = launch;
    match handle.propose(Command::Launch { process, args, key }).await? {
        Response::Launched(instance) => Ok(instance),
        // A launch has no other answer.
        _ => Err(AskError::Busy),
    }
}

fn code(error: &AskError) -> i64 {
    match error {
        AskError::Rejected(Rejected::Full { .. }) => Fault::FULL,
        AskError::Rejected(Rejected::NoProcess(_)) => Fault::NO_PROCESS,
        AskError::Rejected(Rejected::OtherLaunch { .. } | Rejected::NoArgument { .. }) => Fault::PARAMS,
        AskError::NotAllowed | AskError::Rejected(_) => Fault::NOT_ALLOWED,
        AskError::Busy | AskError::Stopping | AskError::Unanswered(_) => Fault::BUSY,
    }
}

/// What a watcher that saw `before` must be told to see `now`.
fn changes(before: &Listings, now: &Listings) -> Vec<WatchChange> {
    let gone = before.iter().filter(|(id, _)| !now.contains_key(*id));
    let gone = gone.map(|(id, listing)| WatchChange::Gone { instance: id.clone(), run: listing.run });
    let put = now.iter().filter(|(id, listing)| before.get(*id) != Some(*listing));
    let put = put.map(|(_, listing)| WatchChange::Put { listing: listing.clone() });
    gone.chain(put).collect()
}

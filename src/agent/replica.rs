//! The replicated state of a cluster of one: commands in, states out, durable on this host's disk.
//!
//! Owns the [`State`]. It stands where Raft will stand, and has its shape: proposals are applied in order,
//! the newest state goes out through a `watch`, and a reply is sent only when the change is on disk.
//! Events of runs are not made durable: after a restart the host's inventory brings them back. That an instance
//! rests (done or failed) is, since nothing else would say so.
//!
//! What the beginning changes (join, the file's processes, placements) goes to disk once, when it is over ([`Begins`]):
//! until then nobody else may change anything, nothing is acted upon, and an agent that ends there has done nothing
//! that the next one would not do in the same way.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::{mpsc, oneshot, watch};

use super::disk::Saving;
use super::handle::Proposal;
use super::supervise::moment;
use crate::cluster::feed::{self, Feed};
use crate::cluster::node::ProposeError;
use crate::metrics::{Metrics, SavedFile};
use crate::spec::HostName;
use crate::state::{Clock, Command, Ended, Envelope, Event, EventKind, Rejected, Response, State};

/// The first bytes of the file.
const MAGIC: [u8; 4] = *b"BBst";
/// Bumped when the bytes behind it change their meaning.
const FORMAT: u16 = 5;
/// The most commands applied before one write.
const BATCH: usize = 256;

/// Why the state could not be read at the start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file cannot be read.
    #[error("cannot read the state at {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not of this program, or of a later version.
    #[error(
        "{path} is no state file of this version; move it away to begin with the processes of cluster.toml"
    )]
    Foreign {
        /// Which.
        path: PathBuf,
    },
    /// The bytes make no state.
    #[error("{path} is damaged; move it away to begin with the processes of cluster.toml")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// Why.
        source: bincode::error::DecodeError,
    },
}

/// The owner of the state.
pub struct Replica {
    state: Arc<State>,
    saving: Saving,
    proposals: mpsc::Receiver<Proposal>,
    out: watch::Sender<Arc<State>>,
    feed: feed::Recorder,
    clock: Clock,
    /// Hears that the beginning is over; `None`: it is.
    beginning: Option<mpsc::Receiver<oneshot::Sender<()>>>,
    /// Something of the beginning is not on disk.
    owed: bool,
}

/// Says that the beginning is over; the answer comes when all that it has changed is on disk. A replica that nobody can
/// tell so any more takes it for over.
pub type Begins = mpsc::Sender<oneshot::Sender<()>>;

/// What follows the state, and who says when it is to be kept.
pub struct Copies {
    /// The newest state.
    pub states: watch::Receiver<Arc<State>>,
    /// The last changes of the directory.
    pub feed: Feed,
    /// For the end of the beginning.
    pub begins: Begins,
}

impl Replica {
    /// Reads the state of the folder, or begins with an empty one.
    pub fn open(
        data_dir: &Path,
        host: &HostName,
        proposals: mpsc::Receiver<Proposal>,
    ) -> Result<(Replica, Copies), OpenError> {
        let file = data_dir.join("state.bin");
        let mut state = read(&file)?;
        state.begin_alone(host);
        let state = Arc::new(state);
        let (out, states) = watch::channel(state.clone());
        let saving = Saving::new(file, SavedFile::State);
        let (mut recorder, feed) = feed::feed();
        recorder.begin_anew(&state);
        let clock = Clock::default();
        let (begins, beginning) = mpsc::channel(1);
        let beginning = Some(beginning);
        let replica =
            Replica { state, saving, proposals, out, feed: recorder, clock, beginning, owed: false };
        Ok((replica, Copies { states, feed, begins }))
    }

    /// Applies proposals until the last proposer is gone.
    pub async fn run(mut self, metrics: Arc<Metrics>) {
        self.saving = self.saving.measured(metrics);
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                biased;
                begun = over(&mut self.beginning) => {
                    self.beginning = None;
                    if std::mem::take(&mut self.owed) {
                        self.save().await;
                    }
                    // Who went away has no use for the answer.
                    let _ = begun.map(|begun| begun.send(()));
                    continue;
                }
                taken = self.proposals.recv_many(&mut batch, BATCH) => if taken == 0 {
                    return;
                },
                () = self.saving.retry() => {
                    self.save().await;
                    continue;
                }
            }
            let mut durable = false;
            let mut answers = Vec::new();
            for Proposal { command, reply } in batch.drain(..) {
                durable |= is_durable(&self.state, &command);
                let stamp_ms = self.clock.now_ms(self.state.now_ms, wall_ms(), moment());
                let envelope = Envelope { stamp_ms, command };
                let (answer, changes) = Arc::make_mut(&mut self.state).apply_and_tell(&envelope);
                self.feed.note(changes);
                answers.push((reply, answer));
            }
            match self.beginning {
                Some(_) => self.owed |= durable,
                None if durable => self.save().await,
                None => {}
            }
            self.out.send_replace(self.state.clone());
            self.feed.tell(&self.state);
            answer(answers);
        }
    }

    /// A host alone goes on when its disk does not: the change holds until the next restart, and says so.
    async fn save(&mut self) {
        let state = self.state.clone();
        self.saving.save(move || encode(&state)).await;
    }
}

/// Until the beginning is over; never, once it is.
async fn over(beginning: &mut Option<mpsc::Receiver<oneshot::Sender<()>>>) -> Option<oneshot::Sender<()>> {
    match beginning {
        Some(beginning) => beginning.recv().await,
        None => std::future::pending().await,
    }
}

/// An inventory brings back what runs, but not that an instance rests, or rests no more: it would run again, or
/// not at all.
fn is_durable(state: &State, command: &Command) -> bool {
    let turns = |event: &Event| match &event.kind {
        EventKind::Rests(_) | EventKind::Stopped(Ended { done: true, .. }) => true,
        EventKind::Started { .. } => state.rests.contains_key(&event.instance),
        _ => false,
    };
    match command {
        Command::Events { events, .. } => events.iter().any(turns),
        Command::Inventory { runs, rests, .. } => {
            runs.keys().any(|id| state.rests.contains_key(id))
                || rests.iter().any(|(id, rest)| state.rests.get(id) != Some(rest))
        }
        _ => true,
    }
}

type Answer = Result<Response, Rejected>;

fn answer(answers: Vec<(oneshot::Sender<Result<Response, ProposeError>>, Answer)>) {
    for (reply, result) in answers {
        // A proposer that went away has no use for the answer.
        let _ = reply.send(result.map_err(ProposeError::from));
    }
}

/// Milliseconds since 1970.
pub fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn read(path: &Path) -> Result<State, OpenError> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(State::default()),
        Err(source) => return Err(OpenError::Read { path: path.to_owned(), source }),
    }
    let foreign = || OpenError::Foreign { path: path.to_owned() };
    let body = bytes.strip_prefix(&MAGIC).ok_or_else(foreign)?;
    let body = body.strip_prefix(&FORMAT.to_le_bytes()).ok_or_else(foreign)?;
    match bincode::serde::decode_from_slice(body, bincode::config::standard()) {
        Ok((state, used)) if used == body.len() => Ok(state),
        Ok(_) => Err(foreign()),
        Err(source) => Err(OpenError::Damaged { path: path.to_owned(), source }),
    }
}

fn encode(state: &State) -> std::io::Result<Vec<u8>> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(FORMAT.to_le_bytes());
    bincode::serde::encode_into_std_write(state, &mut bytes, bincode::config::standard())
        .map_err(std::io::Error::other)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Target;

    fn write(path: &Path, state: &State) {
        super::super::disk::replace(path, &encode(state).unwrap()).unwrap();
    }

    async fn propose(to: &mpsc::Sender<Proposal>, command: Command) -> Result<Response, ProposeError> {
        let (reply, answer) = oneshot::channel();
        to.send(Proposal { command, reply }).await.unwrap();
        answer.await.unwrap()
    }

    #[tokio::test]
    async fn what_was_answered_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let (send, proposals) = mpsc::channel(8);
        let (replica, _) = Replica::open(dir.path(), &"alpha".parse().unwrap(), proposals).unwrap();
        let task = tokio::spawn(replica.run(Arc::new(Metrics::new())));
        propose(&send, Command::Pause { target: Target::All }).await.unwrap();
        task.abort();
        let (_, proposals) = mpsc::channel(8);
        let (_, Copies { states, .. }) =
            Replica::open(dir.path(), &"alpha".parse().unwrap(), proposals).unwrap();
        assert!(states.borrow().paused.all);
    }

    #[tokio::test]
    async fn what_the_beginning_changes_is_on_disk_when_it_is_over_and_from_then_on_each_change() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("state.bin");
        let (send, proposals) = mpsc::channel(8);
        let (replica, copies) = Replica::open(dir.path(), &"alpha".parse().unwrap(), proposals).unwrap();
        let task = tokio::spawn(replica.run(Arc::new(Metrics::new())));
        let join = || Command::JoinHost { host: "alpha".parse().unwrap(), facts: Default::default() };
        for incarnation in 1..=2 {
            let answer = propose(&send, join()).await.unwrap();
            assert_eq!(answer, Response::Incarnation(incarnation));
        }
        assert_eq!(copies.states.borrow().hosts.len(), 1);
        assert!(!file.exists(), "it was written before the beginning was over");
        let (reply, begun) = oneshot::channel();
        copies.begins.send(reply).await.unwrap();
        begun.await.unwrap();
        assert_eq!(read(&file).unwrap().hosts.len(), 1);
        propose(&send, Command::Pause { target: Target::All }).await.unwrap();
        assert!(read(&file).unwrap().paused.all);
        task.abort();
    }

    #[test]
    fn that_an_instance_rests_is_kept_and_that_it_restarts_is_not() {
        use crate::keeper::protocol::{End, RunId};
        let (id, run) = ("dungeon.1".parse::<crate::spec::InstanceId>().unwrap(), RunId(1));
        let event = |kind| {
            let events = vec![Event { instance: id.clone(), run, kind }];
            Command::Events { host: "alpha".parse().unwrap(), incarnation: 1, first_seq: 1, events }
        };
        let stopped = |done| event(EventKind::Stopped(Ended { end: End::Code(0), done }));
        let rest = crate::state::Rest { run, end: End::Code(0), at_ms: 1, failed: None };
        let started = || event(EventKind::Started { hash: Default::default(), ports: Default::default() });
        let inventory = |resting: bool| Command::Inventory {
            host: "alpha".parse().unwrap(),
            incarnation: 1,
            seq: 0,
            runs: Default::default(),
            rests: resting.then(|| (id.clone(), rest.clone())).into_iter().collect(),
        };
        let (mut resting, runs) = (State::default(), State::default());
        resting.rests.insert(id.clone(), rest.clone());
        assert!(is_durable(&runs, &stopped(true)) && !is_durable(&runs, &stopped(false)));
        assert!(is_durable(&runs, &event(EventKind::Rests(rest.clone()))));
        assert!(is_durable(&resting, &started()) && !is_durable(&runs, &started()));
        assert!(is_durable(&runs, &inventory(true)) && !is_durable(&resting, &inventory(true)));
        assert!(!is_durable(&runs, &inventory(false)));
    }

    #[test]
    fn what_ran_when_it_was_written_is_not_taken_for_running() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = State::default();
        let entry = crate::state::Entry {
            host: "alpha".parse().unwrap(),
            run: crate::keeper::protocol::RunId(1),
            hash: Default::default(),
            address: String::new(),
            ports: Default::default(),
            started: 1,
            ready: Some(2),
        };
        state.directory.insert("zone.0".parse().unwrap(), entry);
        write(&dir.path().join("state.bin"), &state);
        let (_, proposals) = mpsc::channel(8);
        let (_, Copies { states, .. }) =
            Replica::open(dir.path(), &"alpha".parse().unwrap(), proposals).unwrap();
        assert!(states.borrow().directory.is_empty());
    }

    #[tokio::test]
    async fn a_host_with_another_machine_id_has_its_own_data_back_and_a_clone_beside_it_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let join = |machine_id: &str| Command::JoinHost {
            host: "alpha".parse().unwrap(),
            facts: crate::state::HostFacts { machine_id: machine_id.to_owned(), ..Default::default() },
        };
        for (own, clone) in [("first", "second"), ("second", "first")] {
            let (send, proposals) = mpsc::channel(8);
            let (replica, _) = Replica::open(dir.path(), &"alpha".parse().unwrap(), proposals).unwrap();
            let task = tokio::spawn(replica.run(Arc::new(Metrics::new())));
            propose(&send, join(own)).await.unwrap();
            let refused = propose(&send, join(clone)).await;
            let cloned = matches!(refused, Err(ProposeError::Rejected(Rejected::CloneOf(_))));
            assert!(cloned, "{refused:?}");
            task.abort();
        }
    }

    #[test]
    fn a_damaged_or_foreign_file_is_refused_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.bin");
        write(&path, &State::default());
        let good = std::fs::read(&path).unwrap();
        for bytes in [&b"hello"[..], &good[..good.len() - 1], &[&good[..], b"x"].concat()] {
            std::fs::write(&path, bytes).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains("move it away"), "{error}");
        }
    }
}

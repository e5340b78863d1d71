//! Starting and ending an agent: folders, runtimes, threads, and the order in which they come to be.
//!
//! ```text
//! listen ▶ this host's copy of the state ▶ supervision thread meets the keeper ▶ beginning ▶ gate opens
//! ```
//!
//! From the first step on the API answers, and says what is waited for. Nothing is started or stopped before the gate opens, so a slow start never takes a living game for an
//! unwanted one. At the end the games stay; only `stop` ends games.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::{broadcast, mpsc, oneshot, watch};

use super::attendance::Carrier;
use super::beginning::{BeginError, Beginning, JOINS};
use super::book::{Book, BookError};
use super::chronicle::{Chronicle, rfc3339};
use super::ending::Ending;
use super::folders::{self, FolderError};
use super::handle::{Handle, HostRequest};
use super::keeper_link::{Early, KeeperSource, start_first};
use super::replica::wall_ms;
use super::reporter::{Report, Reporter};
use super::resolve::Resolver;
use super::ring::copy::{Copy, OpenError};
use super::ring::{self, Ring};
use super::signals::Signals;
use super::spec_file::{self, FileError};
use super::supervise::{Parts, Supervisor};
use super::{attendance, planner, reload};
use crate::cluster::tunnel::Entrance;
use crate::config::{Config, HostSettings};
use crate::descriptors;
use crate::http::view::EventView;
use crate::http::{Audit, ListenError, Listeners, ServeError, Shown};
use crate::keeper::fault;
use crate::keeper::protocol::{CgroupSupport, SOCKET};
use crate::metrics::Metrics;
use crate::plan::Liveness;
use crate::state::{HostFacts, State, Version};
use crate::systemd::Systemd;

/// Who may use the API's socket: this account.
const API_SOCKET_MODE: u32 = 0o600;

/// How long an agent that ends before it has begun waits for the API's last answers.
const LAST_ANSWERS: std::time::Duration = std::time::Duration::from_secs(3);

/// What an agent that has met its keeper waits for first.
const RESERVES: &str = "it reserves run numbers in data_dir";

/// How an agent is started.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// cluster.toml.
    pub config: PathBuf,
    /// Overrides `host.name`.
    pub host: Option<String>,
    /// Where the keeper comes from.
    pub keeper: KeeperSource,
}

/// Why an agent could not start or had to end.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The environment asks for a fault that there is not.
    #[error("{0}")]
    Fault(String),
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// A folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The ports and run numbers.
    #[error(transparent)]
    Book(#[from] BookError),
    /// The state.
    #[error(transparent)]
    State(#[from] OpenError),
    /// The API's addresses.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The API.
    #[error("the API failed")]
    Serve(#[from] ServeError),
    /// The beginning.
    #[error(transparent)]
    Begin(BeginError),
    /// Threads, descriptors, signals.
    #[error("the machine refuses what an agent needs")]
    Machine(#[from] std::io::Error),
    /// This peer's log could not be written; now it could.
    #[error("this peer's log stopped and there is room again: start the agent again, the games go on ({0})")]
    LogStopped(String),
    /// The supervision loop ended by itself.
    #[error("the supervision thread ended; the games go on, start the agent again")]
    Supervision,
}

impl From<BeginError> for AgentError {
    fn from(error: BeginError) -> Self {
        match error {
            BeginError::Supervision => AgentError::Supervision,
            other => AgentError::Begin(other),
        }
    }
}

/// Runs an agent until SIGTERM or SIGINT.
pub fn run(options: &AgentOptions) -> Result<(), AgentError> {
    fault::arm_from_environment().map_err(AgentError::Fault)?;
    let colour = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let config = spec_file::read(&options.config, options.host.as_deref(), colour)?;
    descriptors::raise_limit()?;
    folders::make("data_dir", &config.host.data_dir)?;
    folders::make("runtime_dir", &config.host.runtime_dir)?;
    // Nothing can begin before it listens.
    let early = start_first(&options.keeper, &config.host.runtime_dir, &config.host.data_dir);
    descriptors::make_room()?;
    config.open_doors().iter().for_each(|door| tracing::warn!("{door}"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(serve(options, config, early));
    // A probe or a disk that hangs must not keep a stopped agent alive.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    result
}

/// The channels' far ends that tasks of the second runtime hold.
struct Tasks {
    copy: Copy,
    writer: super::book::Writer,
    reports: mpsc::Receiver<Report>,
    reporter: Reporter,
    carrier: Carrier,
    reload: reload::Reloader,
    launches: mpsc::Receiver<super::supervise::LaunchOrder>,
    launched: mpsc::Sender<super::supervise::LaunchDone>,
    unplaced: watch::Sender<planner::Unplaced>,
    liveness: watch::Receiver<Arc<Liveness>>,
}

async fn serve(options: &AgentOptions, config: Config, early: Early) -> Result<(), AgentError> {
    // Before all else: a signal that comes now ends no agent halfway, and no reload is lost.
    let mut signals = Signals::new()?;
    let (listeners, _held, (handle, tasks, parts)) = tokio::select! {
        prepared = prepare(options, &config, early) => prepared?,
        // A disk or a name that hangs keeps no agent from ending.
        () = signals.end() => return Ok(()),
    };
    let metrics = parts.metrics.clone();
    let (shutdown, ending) = watch::channel(false);
    let (open_gate, gate) = oneshot::channel();
    let (met, keeper_met) = watch::channel(None);
    let (starting, waits) = watch::channel(Some(waits_for_keeper(&config.host)));
    let api = tokio::spawn(crate::http::serve(handle.clone(), listeners, waits, ending.clone()));
    let supervision = start_supervision(Parts { met, gate, shutdown: ending, ..parts })?;
    let copy = tasks.copy.run(metrics.clone());
    let (reserved, runs_reserved) = oneshot::channel();
    let writer = tokio::spawn(tasks.writer.run(metrics, reserved));
    tokio::spawn(tasks.carrier.run(handle.ring.clone()));
    let running = Running { shutdown, supervision, writer, api, copy, handle: handle.clone() };

    let (hang_up, hung_up) = mpsc::channel(1);
    let standing = handle.ring.standings();
    let mut ending = Ending::new(signals, hang_up, keeper_met.clone(), standing, &config.host.data_dir);
    let (mut reports, reload) = (tasks.reports, tasks.reload);
    let liveness = handle.ring.liveness().unwrap_or(tasks.liveness);
    let alone = handle.ring.is_alone();
    let planner = planner::run(handle.clone(), liveness.clone(), tasks.unplaced.clone());
    let mut planner = Some(planner);
    if !alone {
        planner.take().map(tokio::spawn);
    }
    let begin = async {
        let mut met = keeper_met.clone();
        let cgroups = met.wait_for(Option::is_some).await.map_err(|_| AgentError::Supervision)?.clone();
        let facts = facts(&config.host, &cgroups.unwrap_or(CgroupSupport::None));
        starting.send_replace(Some(RESERVES.to_owned()));
        // A writer that is gone ends with the agent.
        let _ = runs_reserved.await;
        starting.send_replace(Some(JOINS.to_owned()));
        let beginning =
            Beginning { handle: &handle, facts, reports: &mut reports, starting: &starting, gate: open_gate };
        let plans = alone.then_some((&liveness, &tasks.unplaced));
        Ok(beginning.run(tasks.reporter, &reload, &config, plans).await?)
    };
    let begun = ending.unless(begin).await;
    let in_force = matches!(begun, Ok(Some(_)));
    let result = match begun {
        Ok(Some(reporter)) => {
            tokio::spawn(reporter.run(reports));
            planner.map(tokio::spawn);
            tokio::spawn(super::supervise::carry_launches(handle, tasks.launches, tasks.launched));
            tokio::spawn(reload.run(keeper_met, hung_up));
            let (host, runtime_dir) = (&config.host.name, config.host.runtime_dir.display());
            tracing::info!(%host, %runtime_dir, "agent started");
            ending.reached().await
        }
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    running.end(in_force).await;
    result
}

/// The doors, the lock on the data, and all parts.
async fn prepare(
    options: &AgentOptions,
    config: &Config,
    early: Early,
) -> Result<(Listeners, Option<std::fs::File>, Made), AgentError> {
    // First: it refuses a second agent, which would take the keeper from the first.
    let socket = config.host.runtime_dir.join("api.sock");
    let (api, tls) = (config.host.api.as_deref(), config.host.api_tls.as_ref());
    let (entrance, tunnelled) = Entrance::new();
    let listeners = Listeners::bind(&socket, API_SOCKET_MODE, api, tls).await?.with_tunnel(tunnelled);
    let held = folders::hold(&config.host.data_dir).await?;
    let made = assemble(options, config, early, entrance, listeners.shown()).await?;
    Ok((listeners, held, made))
}

/// What runs beside the beginning, and to the end.
struct Running {
    shutdown: watch::Sender<bool>,
    supervision: JoinHandle<()>,
    writer: tokio::task::JoinHandle<()>,
    api: tokio::task::JoinHandle<Result<(), ServeError>>,
    copy: Copy,
    handle: Handle,
}

impl Running {
    /// The games stay. `in_force`: of an agent that has begun nobody waits for a last answer.
    async fn end(mut self, in_force: bool) {
        Systemd::from_environment().tell("STOPPING=1");
        let _ = self.shutdown.send(true);
        let supervision = self.supervision;
        let joined = tokio::task::spawn_blocking(move || supervision.join());
        let _ = tokio::time::timeout(std::time::Duration::from_secs(2), joined).await;
        let _ = tokio::time::timeout(std::time::Duration::from_secs(1), self.writer).await;
        if !in_force {
            let _ = tokio::time::timeout(LAST_ANSWERS, &mut self.api).await;
        }
        self.api.abort();
        self.handle.audit.settled().await;
        self.copy.close().await;
    }
}

/// For people who ask a starting agent.
fn waits_for_keeper(host: &HostSettings) -> String {
    let (socket, log) = (host.runtime_dir.join(SOCKET), host.data_dir.join("keeper.log"));
    format!(
        "it waits for this host's keeper at {}; what keeps that is in {} or in the journal of bigbrother-keeper",
        socket.display(),
        log.display()
    )
}

fn handle(
    config: &Config,
    logs: PathBuf,
    requests: mpsc::Sender<HostRequest>,
    ring: Ring,
    state: watch::Receiver<Arc<State>>,
    events: broadcast::Sender<Arc<EventView>>,
) -> Handle {
    let (host, cluster) = (config.host.name.clone(), config.cluster.name.clone());
    let (started_at, metrics) = (rfc3339(wall_ms()), Arc::new(Metrics::new()));
    let (audit, writing) = Audit::open(config.host.data_dir.join("audit.jsonl"), metrics.clone());
    // It ends with the last who may write something down.
    tokio::spawn(writing);
    Handle { host, cluster, started_at, logs, requests, ring, state, events, metrics, audit }
}

/// Where settings, drift and reports go.
type Outlets = (watch::Sender<Arc<HostSettings>>, watch::Sender<Option<String>>, mpsc::Sender<Report>);

fn reloader(
    options: &AgentOptions,
    handle: &Handle,
    shown: Option<Shown>,
    (settings, drift, reports): Outlets,
    requests: mpsc::Receiver<oneshot::Sender<Result<String, String>>>,
) -> reload::Reloader {
    let (path, host, handle) = (options.config.clone(), options.host.clone(), handle.clone());
    reload::Reloader { path, host, handle, settings, drift, shown, reports, requests }
}

/// What the agent is made of.
type Made = (Handle, Tasks, Parts);

async fn assemble(
    options: &AgentOptions,
    config: &Config,
    early: Early,
    entrance: Entrance,
    shown: Option<Shown>,
) -> Result<Made, AgentError> {
    let host = &config.host;
    let (requests, asked) = mpsc::channel(64);
    let (events, _) = broadcast::channel(4096);
    let (reports, reported) = mpsc::channel(8192);
    let ((settles, settled), (reloads, to_reload)) = (mpsc::channel(1024), mpsc::channel(1));
    let ((launches, to_launch), (launched, done)) = (mpsc::channel(256), mpsc::channel(256));
    let (unplaced, unplaced_seen) = watch::channel(planner::Unplaced::default());
    let (liveness_told, liveness) = watch::channel(Arc::new(Liveness::default()));
    let (drift, drift_seen) = watch::channel(None);
    let (settings, settings_seen) = watch::channel(Arc::new(host.clone()));
    let (ring, state, copy) = ring::copy::open(config, entrance).await?;
    let (attended, carrier, joined) = attendance::ends(ring.is_alone());
    let (book, writer) = Book::open(&host.data_dir, host.ports)?;
    let resolver = Resolver::new(host.clone());
    let handle = handle(config, resolver.logs(), requests, ring, state.clone(), events.clone());
    let (told, began) = ((settings, drift, reports.clone()), state.borrow().clone());
    let reload = reloader(options, &handle, shown, told, to_reload);
    let tasks = Tasks {
        copy,
        writer,
        reports: reported,
        reporter: Reporter::new(handle.clone(), settles, joined),
        carrier,
        reload,
        launches: to_launch,
        launched,
        unplaced,
        liveness,
    };
    // The last three are replaced by the caller.
    let ((met, _), (_, gate), (_, shutdown)) =
        (watch::channel(None), oneshot::channel(), watch::channel(false));
    let parts = Parts {
        name: host.name.clone(),
        runtime_dir: host.runtime_dir.clone(),
        data_dir: host.data_dir.clone(),
        keeper: options.keeper.clone(),
        early,
        book,
        resolver,
        chronicle: Chronicle::new(host.name.clone(), events, &began, handle.ring.standings()),
        metrics: handle.metrics.clone(),
        reports,
        settled,
        states: state,
        attended,
        unplaced: unplaced_seen,
        statuses: handle.ring.statuses().clone(),
        liveness: liveness_told,
        drift: drift_seen,
        requests: asked,
        reloads,
        settings: settings_seen,
        launches,
        launched: done,
        audit: handle.audit.clone(),
        main_runtime: tokio::runtime::Handle::current(),
        met,
        gate,
        shutdown,
    };
    Ok((handle, tasks, parts))
}

fn start_supervision(parts: Parts) -> Result<JoinHandle<()>, AgentError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let thread = std::thread::Builder::new().name("supervision".to_owned());
    Ok(thread.spawn(move || {
        runtime.block_on(async {
            match Supervisor::new(parts) {
                Ok(supervisor) => supervisor.run().await,
                Err(error) => tracing::error!(%error, "the machine refuses what supervision needs"),
            }
        });
    })?)
}

/// What this host says about itself.
pub(super) fn facts(host: &HostSettings, cgroups: &CgroupSupport) -> HostFacts {
    let enforces = match cgroups {
        CgroupSupport::Full { controllers } => controllers.clone(),
        _ => Vec::new(),
    };
    let machine_id = std::fs::read_to_string("/etc/machine-id").unwrap_or_default().trim().to_owned();
    HostFacts {
        machine_id,
        address: host.address.clone(),
        agent: host.agent.clone(),
        labels: host.labels.clone(),
        capacity: host.capacity.clone(),
        enforces,
        version: Version::NEWEST,
    }
}

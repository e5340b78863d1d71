//! Attached hosts in one process, each with a runtime of its own.

use std::path::Path;
use std::time::Duration;

use bigbrother::cluster::node;
use bigbrother::cluster::session::{Attached, MOVE_AFTER, OpenError, Session, Settings};
use bigbrother::spec::HostName;
use bigbrother::state::{Command, Response, State};
use tokio::runtime::Runtime;

use super::peers::{Peer, name, until};

/// An attached host that runs.
pub struct Host {
    pub settings: Settings,
    runtime: Option<Runtime>,
    session: Option<Session>,
}

/// A host that asks these peers; its folder is beside theirs.
pub fn host_of(peers: &node::Settings, host: &str) -> Settings {
    Settings {
        cluster: peers.cluster.clone(),
        host: name(host),
        peers: peers.peers.clone(),
        data_dir: folder_of(peers, host),
        tls: None,
        peer_silence: Duration::from_secs(1),
        move_after: MOVE_AFTER,
    }
}

fn folder_of(peers: &node::Settings, host: &str) -> std::path::PathBuf {
    let folder = peers.data_dir.parent().unwrap_or(Path::new(".")).join(host);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

impl Host {
    pub fn start(settings: &Settings) -> Host {
        Host::try_start(settings).unwrap()
    }

    pub fn try_start(settings: &Settings) -> Result<Host, OpenError> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let session = runtime.block_on(Session::open(settings.clone()))?;
        Ok(Host { settings: settings.clone(), runtime: Some(runtime), session: Some(session) })
    }

    pub fn attached(&self) -> Attached {
        self.session.as_ref().unwrap().attached()
    }

    pub fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.as_ref().unwrap().block_on(work)
    }

    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        self.runtime.as_ref().unwrap().spawn(work)
    }

    pub fn served_by(&self) -> Option<HostName> {
        self.attached().served_by().borrow().clone()
    }

    /// Waits until a peer serves it, and says which.
    pub fn served(&self) -> HostName {
        until("a peer", || self.served_by().ok_or_else(|| self.trouble()))
    }

    pub fn trouble(&self) -> Option<String> {
        self.attached().trouble().borrow().clone()
    }

    pub fn state(&self) -> State {
        State::clone(&self.attached().states().borrow())
    }

    pub fn propose(&self, command: Command) -> Response {
        until("a change", || {
            self.run(self.attached().propose(command.clone())).map_err(|error| error.to_string())
        })
    }

    /// As SIGKILL does.
    pub fn kill(mut self) -> Settings {
        self.end();
        self.settings.clone()
    }

    /// As SIGTERM does.
    pub fn close(mut self) -> Settings {
        let session = self.session.take().unwrap();
        self.run(session.close());
        self.end();
        self.settings.clone()
    }

    fn end(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        drop(self.session.take());
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.end();
    }
}

/// Waits until the copy of the host is that of the peer.
pub fn alike(host: &Host, peer: &Peer) -> State {
    until("the peer's state", || {
        let (own, other) = (host.state(), peer.state());
        if own == other { Ok(own) } else { Err((own.index, other.index)) }
    })
}

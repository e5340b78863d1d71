//! This host's copy of the replicated state, and the tasks that keep it.
//!
//! Owns them for the life of the agent: cluster.toml says which kind. At the end a primary hands over first.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::{Alone, Ring};
use crate::agent::replica::{self, Copies, Replica};
use crate::cluster::node::{self, Node};
use crate::cluster::session::{self, Session};
use crate::cluster::statuses::Statuses;
use crate::cluster::tunnel::{self, Entrance};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::state::State;

/// How long taking leave may take: a hand-over, and the last writes.
const LEAVE: Duration = Duration::from_secs(3);

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Of a host alone.
    #[error(transparent)]
    Replica(#[from] replica::OpenError),
    /// Of a peer.
    #[error(transparent)]
    Node(#[from] node::OpenError),
    /// Of an attached host.
    #[error(transparent)]
    Session(#[from] session::OpenError),
    /// Of an attached host: where other agents reach its API.
    #[error(transparent)]
    Listen(#[from] tunnel::ListenError),
}

/// The owner; see the module.
pub enum Copy {
    /// A host alone; not running yet.
    Replica(Box<Replica>),
    /// A host alone.
    Alone(JoinHandle<()>),
    /// A peer.
    Peer(Box<Node>),
    /// An attached host.
    Attached(Session, JoinHandle<()>),
}

/// The way to the state, the state, and who keeps it.
pub type Opened = (Ring, watch::Receiver<Arc<State>>, Copy);

/// Opens the copy that cluster.toml asks for; other agents come in by the entrance.
pub async fn open(config: &Config, entrance: Entrance) -> Result<Opened, OpenError> {
    let (host, cluster) = (&config.host, &config.cluster);
    if cluster.peers.is_empty() {
        let (proposals, proposed) = mpsc::channel(1024);
        let (replica, Copies { states, feed, begins }) = Replica::open(&host.data_dir, &host.name, proposed)?;
        return Ok((
            Ring::Alone(Alone {
                proposals,
                begins,
                feed,
                history: fastrand::u64(1..),
                statuses: Statuses::new(host.name.clone()),
            }),
            states,
            Copy::Replica(Box::new(replica)),
        ));
    }
    if !cluster.peers.contains_key(&host.name) {
        let session = Session::open(session::Settings {
            cluster: cluster.name.clone(),
            host: host.name.clone(),
            peers: cluster.peers.clone(),
            data_dir: host.data_dir.clone(),
            tls: cluster.tls.clone(),
            peer_silence: cluster.peer_silence,
            move_after: session::MOVE_AFTER,
        });
        let session = session.await?;
        let attached = session.attached();
        let tls = attached.exchange().dialer().tls().cloned();
        let listening = tunnel::listen(&host.listen, tls, attached.greets_as(), entrance).await?;
        let copy = Copy::Attached(session, tokio::spawn(listening));
        return Ok((Ring::Attached(attached.clone()), attached.states(), copy));
    }
    let node = Node::open(node::Settings::of(config)).await?;
    node.open_tunnel(entrance);
    Ok((Ring::Peer(node.peer()), node.states(), Copy::Peer(Box::new(node))))
}

impl Copy {
    /// From now on it takes proposals.
    pub fn run(self, metrics: Arc<Metrics>) -> Copy {
        match self {
            Copy::Replica(replica) => Copy::Alone(tokio::spawn(replica.run(metrics))),
            running => running,
        }
    }

    /// Takes leave.
    pub async fn close(self) {
        match self {
            Copy::Replica(_) => {}
            Copy::Alone(task) => task.abort(),
            Copy::Peer(node) => {
                if tokio::time::timeout(LEAVE, node.close()).await.is_err() {
                    tracing::warn!("left without a word to the other peers");
                }
            }
            Copy::Attached(session, listening) => {
                listening.abort();
                let _ = tokio::time::timeout(LEAVE, session.close()).await;
            }
        }
    }
}

//! Which connection each of Raft's messages takes: what is in a hurry has one on which nothing large ever is.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bigbrother::cluster::raft::network::Network;
use bigbrother::cluster::raft::{Peer, Types, Vote};
use bigbrother::cluster::wire::hello::Ours;
use bigbrother::cluster::wire::{Dialer, Exchange, Hello, Kind, Outlet, Peerage, Purpose, Server, Service};
use bigbrother::spec::HostName;
use openraft::network::RPCOption;
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest};
use openraft::{RaftNetworkFactory, RaftNetworkV2, TokioRuntime};
use tokio::sync::{mpsc, watch};

use super::peers::name;

fn ours(host: &str) -> Ours {
    Ours { cluster: "pirates".to_owned(), host: name(host), incarnation: 1, history: Some(7), id: Some(1) }
}

/// Notes what comes on which connection, and answers nothing.
#[derive(Default)]
struct Ear(Mutex<Vec<(Kind, Purpose)>>);

impl Service for Ear {
    fn ours(&self) -> Ours {
        ours("alpha")
    }

    fn peerage(&self, _: &HostName) -> Peerage {
        Peerage::Peer
    }

    async fn answer(&self, from: &Hello, kind: Kind, _: Vec<u8>, _: &Outlet) -> Result<Vec<u8>, String> {
        self.0.lock().unwrap().push((kind, from.purpose));
        Err("heard".to_owned())
    }

    async fn take_snapshot(&self, _: &Hello, _: Vec<u8>, _: Vec<u8>) -> Result<Vec<u8>, String> {
        Err("heard".to_owned())
    }
}

#[tokio::test]
async fn votes_and_heartbeats_never_wait_behind_entries() {
    let server = Server::bind("127.0.0.1:0", None).await.unwrap();
    let alpha = Peer { name: "alpha".to_owned(), address: server.address().unwrap().to_string() };
    let ear = Arc::new(Ear::default());
    tokio::spawn(server.run(ear.clone()));
    let ((_ours, seen), (told, _connected)) = (watch::channel(ours("beta")), mpsc::channel(8));
    let exchange = Exchange::new(Dialer::new(seen, None), told);
    let mut network = Network::new(2, exchange, watch::channel(true).1);
    let mut way = network.new_client(1, &alpha).await;
    let mut beats = network.new_heartbeat_client(1, &alpha).await;

    let vote = Vote::new(1, 2);
    let option = || RPCOption::new(Duration::from_secs(10));
    let append = || AppendEntriesRequest::<Types<TokioRuntime>> {
        vote,
        prev_log_id: None,
        entries: Vec::new(),
        leader_commit: None,
    };
    // None is answered; all are heard.
    let _ = way.vote(VoteRequest::new(vote, None), option()).await;
    let _ = way.pre_vote(VoteRequest::new(vote, None), option()).await;
    let _ = way.transfer_leader(TransferLeaderRequest::new(vote, 1, None), option()).await;
    let _ = beats.append_entries(append(), option()).await;
    let _ = way.append_entries(append(), option()).await;
    let heard = [
        (Kind::Vote, Purpose::Urgent),
        (Kind::PreVote, Purpose::Urgent),
        (Kind::Transfer, Purpose::Urgent),
        (Kind::Append, Purpose::Urgent),
        (Kind::Append, Purpose::Bulk),
    ];
    assert_eq!(*ear.0.lock().unwrap(), heard);
}

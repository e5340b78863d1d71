//! Peers over real sockets and real files: they form, elect, change, lose and regain members.

#![allow(clippy::unwrap_used)]

#[path = "cluster/attach.rs"]
mod attach;
#[path = "cluster/certificates.rs"]
mod certificates;
#[path = "cluster/finding.rs"]
mod finding;
#[path = "cluster/formation.rs"]
mod formation;
#[path = "cluster/golden.rs"]
mod golden;
#[path = "cluster/hosts.rs"]
mod hosts;
#[path = "cluster/loss.rs"]
mod loss;
#[path = "cluster/members.rs"]
mod members;
#[path = "cluster/net.rs"]
mod net;
#[path = "cluster/peers.rs"]
mod peers;
#[path = "cluster/recovery.rs"]
mod recovery;
#[path = "cluster/statuses.rs"]
mod statuses;
#[path = "cluster/ways.rs"]
mod ways;
#[path = "cluster/wire.rs"]
mod wire;

//! The cluster: the peers that keep the replicated state, and what agents say to each other.
//!
//! ```text
//!            propose ─▶ node ─▶ raft ─▶ log_store (redb, fsync)          one a peer
//!                        ▲       │ ▲
//!   states, standing ◀───┘       ▼ └── machine ─▶ watch: Arc<State>
//!                              network ─▶ wire ─▶ tls ─▶ the other peers
//! ```
//!
//! [`node::Node`] is what the agent of a peer uses, [`session::Session`] that of any other host; everything else
//! here serves them. [`raft`] keeps the state by Raft (openraft), [`wire`] carries messages, [`tls`] says who is who.
//! [`tunnel`] carries requests of the API from one agent to another, [`statuses`] what runs say about themselves.

pub mod feed;
pub mod node;
pub mod raft;
pub mod session;
pub mod statuses;
pub mod tls;
pub mod tunnel;
pub mod wire;

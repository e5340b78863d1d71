//! What game processes speak to their agent: JSON-RPC lines and `sd_notify`.
//!
//! [`rpc`] and [`notify`] are the codecs, pure; [`socket`] owns the sockets and hands out what they say as
//! events. Decides nothing: what a message means for an instance is the supervision loop's business, which
//! alone calls it. docs/protocol.md is the protocol; the message shapes lie in [`crate::client::message`].

pub mod notify;
pub mod rpc;
pub mod socket;

pub use socket::{ConnId, Identity, KnownBy, Said, SocketEvent, Sockets};

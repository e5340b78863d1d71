//! What agents say to each other: frames, handshake, calls with answers.
//!
//! Owns the connections between agents, never what is said on them. A connection begins with a handshake
//! ([`Hello`], then [`Welcome`] or [`Refusal`]) that names its [`Purpose`]; afterwards each frame is a
//! request or the answer to one. Votes, heartbeats and reports have a connection of their own
//! ([`Purpose::Urgent`]), entries and proposals another, the status of runs and each snapshot one more, so that
//! nothing small ever waits behind something large. Every queue is bounded, and every request ends by its deadline.
//! [`frame`], [`codec`] and [`hello`] are pure; [`line`](mod@line) dials and [`serve`] answers. Called by `cluster::raft` and
//! `cluster::node`.

pub mod codec;
pub mod dial;
pub mod exchange;
pub mod frame;
pub mod hall;
pub mod hello;
pub mod line;
pub mod outlet;
pub mod parcel;
pub mod serve;
pub mod stream;

pub use codec::{DecodeError, EncodeError, decode, encode};
pub use dial::{DialError, Dialer, Target};
pub use exchange::Exchange;
pub use frame::{Decoder, Frame, FrameError, Kind};
pub use hello::{Hello, Purpose, Refusal, Welcome};
pub use line::{CallError, Line};
pub use outlet::Outlet;
pub use serve::{Peerage, Server, Service};

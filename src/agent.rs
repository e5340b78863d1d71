//! The agent: wires the pure cores to the keeper, the process sockets, the probes and the API.
//!
//! Owns two runtimes: the supervision loop has a thread of its own ([`supervise`]); the replica, the
//! planner, the reporter, the probes and the API share another. Bounded channels run between them, so that
//! nothing on the second one delays a heartbeat deadline or a restart.

pub mod annals;
pub mod attendance;
pub mod beginning;
pub mod book;
pub mod chronicle;
pub mod disk;
pub mod ending;
pub mod evidence;
pub mod folders;
pub mod handle;
pub mod keeper_link;
pub mod lookup;
pub mod planner;
pub mod probe;
pub mod readiness;
pub mod reload;
pub mod replica;
pub mod reporter;
pub mod resolve;
pub mod ring;
pub mod signals;
pub mod spec_file;
pub mod start;
pub mod strike;
pub mod supervise;

pub use handle::Handle;
pub use start::{AgentError, AgentOptions, run};

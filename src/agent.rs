//! The agent: wires the pure cores to the keeper, the process sockets, the probes and the API.

pub mod handle;
pub mod probe;

pub use handle::Handle;

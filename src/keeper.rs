//! The keeper: the small process of a host that is the parent of all game processes.
//!
//! Owns: the runs (spawn, reap, exit codes until acknowledged), their stdout and stderr, the listening
//! ends of their sockets, the game cgroups, and the fence deadline. Holds no policy: what to start, when
//! to restart and what hangs is decided by the agent, which talks to it over [`protocol`].

pub mod protocol;

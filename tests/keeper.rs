//! The keeper as it is: the built program, driven over its socket. Needs root (users, cgroups, mounts).

#![allow(clippy::unwrap_used)] // a test program: its helpers too may panic

#[path = "keeper/host.rs"]
mod host;

#[path = "keeper/birth.rs"]
mod birth;
#[path = "keeper/death.rs"]
mod death;
#[path = "keeper/disk.rs"]
mod disk;
#[path = "keeper/ending.rs"]
mod ending;
#[path = "keeper/fence.rs"]
mod fence;
#[path = "keeper/logs.rs"]
mod logs;
#[path = "keeper/protocol.rs"]
mod protocol;
#[path = "keeper/runs.rs"]
mod runs;
#[path = "keeper/succession.rs"]
mod succession;

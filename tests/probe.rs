//! Probes against real game servers, against servers that misbehave, and with real commands.
//!
//! Needs the Debian packages teeworlds-server, ddnet-server and openarena-server, and root (to become
//! another user).

#![expect(clippy::unwrap_used, reason = "a test may panic, its helpers too")]

#[path = "probe/asker.rs"]
mod asker;

#[path = "probe/commands.rs"]
mod commands;
#[path = "probe/games.rs"]
mod games;
#[path = "probe/misbehaving.rs"]
mod misbehaving;

//! Soft status: what runs say about themselves, as every host has it of all of them.
//!
//! ```text
//! supervision ─ note ─▶ own sheet ─┐
//!                                  ├─ board ─ of ─▶ reads        since ─▶ deltas for whoever asks
//! other hosts ─ merge ─▶ sheets ───┘         news ─▶ watchers
//! ```
//!
//! A [`Board`] has a [`Sheet`] for each host, written by that host alone: a line for each of its runs, numbered by
//! the host as it changes. Whoever asks says up to which number it has a sheet and is given the lines behind it, each
//! as it is now. So nothing is queued for anybody: who is slow misses what was in between, and who comes back after
//! a break says what it has, or takes the whole. Owns what is known and its bounds; never carries anything, and
//! nothing of it enters the log. Pure: time is an argument. Called by [`crate::cluster::statuses`], read by `http`.

mod board;
mod sheet;
mod summary;

pub use board::{Board, Merged, Places};
pub use sheet::{Delta, FRESH, Line, MAX_BYTES, MAX_RUNS, Place, Sheet, Told};
pub use summary::{Fact, MAX_SUMMARY, Summary};

/// Under this name in what a run says of itself is who plays: that stays with its host.
pub const PLAYER_LIST: &str = "player_list";

#[cfg(test)]
mod tests;

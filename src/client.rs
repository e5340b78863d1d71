//! The library for game processes: the process API from the inside.

pub mod line;
pub mod message;

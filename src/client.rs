//! The library for game processes: the process API from the inside.

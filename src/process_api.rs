//! process_api

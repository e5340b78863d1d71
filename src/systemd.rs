//! What agent and keeper tell systemd: ready, stopping, alive (sd_notify(3), sd_watchdog_enabled(3)).
//!
//! Owns nothing but the address, taken from the environment once. Without `$NOTIFY_SOCKET` all is silence.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Where to, and how often.
pub struct Systemd {
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// Half of what systemd allows, nanoseconds; `None`: no watchdog.
    pub beat_ns: Option<u64>,
}

impl Systemd {
    /// Reads `$NOTIFY_SOCKET`, `$WATCHDOG_USEC` and `$WATCHDOG_PID`.
    pub fn from_environment() -> Self {
        let socket = std::env::var("NOTIFY_SOCKET").ok().and_then(|path| {
            let address = match path.strip_prefix('@') {
                Some(name) => SocketAddr::from_abstract_name(name).ok()?,
                None => SocketAddr::from_pathname(path).ok()?,
            };
            let socket = UnixDatagram::unbound().ok()?;
            socket.set_nonblocking(true).ok()?;
            Some((socket, address))
        });
        let for_us = std::env::var("WATCHDOG_PID").map_or(true, |pid| pid == std::process::id().to_string());
        let usec = std::env::var("WATCHDOG_USEC").ok().and_then(|t| t.parse::<u64>().ok()).filter(|u| *u > 0);
        let beat_ns = usec.filter(|_| for_us && socket.is_some()).map(|u| u * 1000 / 2);
        Systemd { socket, beat_ns }
    }

    /// One whose socket is there, without a watchdog.
    #[cfg(test)]
    pub(crate) fn at(path: &std::path::Path) -> Self {
        let socket = UnixDatagram::unbound().ok().zip(SocketAddr::from_pathname(path).ok());
        Systemd { socket, beat_ns: None }
    }

    /// Says one thing.
    pub fn tell(&self, text: &str) {
        if let Some((socket, address)) = &self.socket {
            let _ = socket.send_to_addr(text.as_bytes(), address);
        }
    }
}

//! Ports for hosts under test that run side by side.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};

/// Ports of one host.
pub const PORTS: u16 = 20;
/// Where they lie: above the default of `host.ports`, below those that the kernel gives out by itself.
const LOWEST: u16 = 30_000;
const BEYOND: u16 = 32_760;

/// Ports that no other host under test uses: the first is bound for as long as this lives.
pub struct PortBlock {
    first: u16,
    _holder: TcpListener,
}

impl PortBlock {
    /// The first and the last port to use.
    pub fn ports(&self) -> (u16, u16) {
        (self.first + 1, self.first + PORTS - 1)
    }

    pub fn take() -> PortBlock {
        let blocks = (BEYOND - LOWEST) / PORTS;
        let start = std::process::id() % u32::from(blocks);
        for n in 0..blocks {
            let first = LOWEST + (start as u16 + n) % blocks * PORTS;
            let unused = |port| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok();
            if let Ok(holder) = TcpListener::bind((Ipv4Addr::LOCALHOST, first))
                && (first..first + PORTS).all(unused)
            {
                return PortBlock { first, _holder: holder };
            }
        }
        panic!("no free block of ports from {LOWEST} to {BEYOND}");
    }
}

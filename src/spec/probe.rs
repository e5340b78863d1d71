//! Questions that the agent puts to a run, and the query protocols of games.

use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A question that the agent puts to a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Probe {
    /// The game's query protocol on one of its UDP (Minecraft: TCP) ports.
    Query {
        /// Which protocol.
        protocol: QueryProtocol,
        /// The name of the port in `ports`.
        port: String,
    },
    /// A TCP connection that is accepted.
    Tcp {
        /// The name of the port in `ports`.
        port: String,
    },
    /// A command (templates as in `command`) that exits 0.
    Exec {
        /// The program and its arguments.
        command: Vec<String>,
    },
}

/// A query protocol of games.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QueryProtocol {
    /// Teeworlds 0.7: token, then `gie3`/`inf3`.
    Teeworlds,
    /// Teeworlds 0.6 and DDNet: `gie3`/`inf3` without a token.
    Ddnet,
    /// Quake 3 and its descendants: `getstatus`.
    Quake3,
    /// Valve's A2S_INFO.
    Valve,
    /// Minecraft Java's server list ping.
    Minecraft,
}

impl QueryProtocol {
    /// The shortest interval that a stock server of this protocol answers without dropping requests.
    pub fn shortest_interval(self) -> Duration {
        match self {
            // ioquake3 lets one status request a second through per address.
            QueryProtocol::Quake3 => Duration::from_secs(2),
            _ => Duration::from_millis(100),
        }
    }
}

impl FromStr for QueryProtocol {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "teeworlds" => Ok(QueryProtocol::Teeworlds),
            "ddnet" => Ok(QueryProtocol::Ddnet),
            "quake3" => Ok(QueryProtocol::Quake3),
            "valve" => Ok(QueryProtocol::Valve),
            "minecraft" => Ok(QueryProtocol::Minecraft),
            _ => Err(()),
        }
    }
}

//! Agents of three hosts that are one cluster, as an operator sees them: from whichever host it is asked.

#![allow(clippy::unwrap_used)]

#[path = "support/host.rs"]
mod host;
#[path = "support/agent/ran.rs"]
mod ran;

use host::PATIENCE;

#[path = "agents/access.rs"]
mod access;
#[path = "agents/beginning.rs"]
mod beginning;
#[path = "agents/certificates.rs"]
mod certificates;
#[path = "agents/cluster.rs"]
mod cluster;
#[path = "agents/directory.rs"]
mod directory;
#[path = "agents/floods.rs"]
mod floods;
#[path = "agents/looking.rs"]
mod looking;
#[path = "agents/losing.rs"]
mod losing;
#[path = "agents/openapi.rs"]
mod openapi;
#[path = "agents/operating.rs"]
mod operating;
#[path = "agents/prometheus.rs"]
mod prometheus;
#[path = "agents/restoring.rs"]
mod restoring;
#[path = "agents/returning.rs"]
mod returning;
#[path = "agents/saying.rs"]
mod saying;
#[path = "agents/strangers.rs"]
mod strangers;

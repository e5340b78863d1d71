//! What the demo server says to its agent, over [`crate::client`], the library that games use.
//!
//! Without `$BIGBROTHER_SOCKET` it says nothing, so that the server also runs alone.

use crate::client::{Client, ConnectError, Incoming, Status};

/// The connection, if there is an agent.
pub struct Voice {
    client: Option<Client>,
}

impl Voice {
    /// Connects to `$BIGBROTHER_SOCKET`.
    pub fn from_env() -> Result<Voice, ConnectError> {
        let mut client = Client::from_env()?;
        if let Some(client) = &mut client {
            client.hello("demo-zone", env!("CARGO_PKG_VERSION"));
        }
        Ok(Voice { client })
    }

    /// Players may come.
    pub fn ready(&mut self) {
        self.client.iter_mut().for_each(Client::ready);
    }

    /// It lives.
    pub fn heartbeat(&mut self) {
        self.client.iter_mut().for_each(Client::heartbeat);
    }

    /// What can be seen of it.
    pub fn status(&mut self, players: u32, capacity: u32, fps: f64) {
        let map = Some("harbour".to_owned());
        let status = Status {
            players: Some(players),
            capacity: Some(capacity),
            fps: Some(fps),
            map,
            ..Status::default()
        };
        self.client.iter_mut().for_each(|client| client.status(&status));
    }

    /// It ends by itself now.
    pub fn stopping(&mut self) {
        self.client.iter_mut().for_each(Client::stopping);
    }

    /// Why to end, if the agent has asked for it. Never waits.
    pub fn hear(&mut self) -> Option<String> {
        let heard = self.client.iter_mut().flat_map(Client::poll);
        heard
            .filter_map(|incoming| match incoming {
                Incoming::Shutdown(shutdown) => Some(shutdown.reason),
                _ => None,
            })
            .last()
    }
}

//! What the demo server says to its agent: the seam to `crate::client`.
//!
//! Without `$BIGBROTHER_SOCKET` it says nothing, so that the server also runs alone.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};

/// The connection, if there is an agent.
pub struct Voice {
    socket: Option<UnixStream>,
    unread: Vec<u8>,
}

impl Voice {
    /// Connects to `$BIGBROTHER_SOCKET`.
    pub fn from_env() -> io::Result<Voice> {
        let mut voice = Voice { socket: None, unread: Vec::new() };
        if let Some(path) = std::env::var_os("BIGBROTHER_SOCKET") {
            let socket = UnixStream::connect(path)?;
            socket.set_nonblocking(true)?;
            voice.socket = Some(socket);
            voice.say("hello", json!({ "name": "demo-zone", "version": env!("CARGO_PKG_VERSION") }));
        }
        Ok(voice)
    }

    /// Players may come.
    pub fn ready(&mut self) {
        self.say("ready", json!({}));
    }

    /// It lives.
    pub fn heartbeat(&mut self) {
        self.say("heartbeat", json!({}));
    }

    /// What can be seen of it.
    pub fn status(&mut self, players: u64, capacity: u64, fps: u64) {
        self.say("status", json!({ "players": players, "capacity": capacity, "fps": fps, "map": "harbour" }));
    }

    /// It ends by itself now.
    pub fn stopping(&mut self) {
        self.say("stopping", json!({}));
    }

    /// Why to end, if the agent has asked for it. Answers its pings. Never waits.
    pub fn hear(&mut self) -> Option<String> {
        let socket = self.socket.as_mut()?;
        let mut piece = [0; 4096];
        while let Ok(length @ 1..) = socket.read(&mut piece) {
            self.unread.extend_from_slice(&piece[..length]);
        }
        while let Some(end) = self.unread.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.unread.drain(..=end).collect();
            let Ok(message) = serde_json::from_slice::<Value>(&line) else { continue };
            match message["method"].as_str() {
                Some("shutdown") => {
                    let reason = message["params"]["reason"].as_str().unwrap_or("shutdown");
                    return Some(reason.to_owned());
                }
                Some("ping") if !message["id"].is_null() => {
                    self.write(&json!({ "jsonrpc": "2.0", "id": message["id"], "result": {} }));
                }
                _ => {}
            }
        }
        None
    }

    fn say(&mut self, method: &str, params: Value) {
        self.write(&json!({ "jsonrpc": "2.0", "method": method, "params": params }));
    }

    fn write(&mut self, message: &Value) {
        if let Some(socket) = &mut self.socket {
            // The agent may be away for a while: a game plays on, and beats that nobody reads are not kept.
            socket.write_all(format!("{message}\n").as_bytes()).ok();
        }
    }
}

//! A zone server that speaks to Big Brother: the shape of a game's main loop.
//!
//! In cluster.toml: `ready = { mode = "native" }`, `heartbeat = { mode = "native" }`, `ports = { game = "udp" }`.
//! Answers every datagram on `$PORT_GAME` with its tick; a sender counts as a player for ten seconds.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use bigbrother::client::{Client, Incoming, Status};

const TICK: Duration = Duration::from_millis(50);
const AWAY: Duration = Duration::from_secs(10);

fn main() -> Result<(), Box<dyn Error>> {
    let port: u16 = std::env::var("PORT_GAME").unwrap_or_else(|_| "7777".to_owned()).parse()?;
    let socket = UdpSocket::bind(("0.0.0.0", port))?;
    socket.set_nonblocking(true)?;
    let mut players: BTreeMap<SocketAddr, Instant> = BTreeMap::new();

    let mut agent = Client::from_env()?;
    if let Some(agent) = &mut agent {
        agent.hello("zone-example", env!("CARGO_PKG_VERSION"));
        agent.ready();
    }
    println!("listening on port {port}");

    for tick in 0u64.. {
        let mut datagram = [0; 1500];
        while let Ok((_, from)) = socket.recv_from(&mut datagram) {
            players.insert(from, Instant::now());
            socket.send_to(format!("tick {tick}\n").as_bytes(), from)?;
        }
        players.retain(|_, seen| seen.elapsed() < AWAY);

        if let Some(agent) = &mut agent {
            agent.heartbeat();
            agent.status(&Status {
                players: Some(players.len().try_into()?),
                capacity: Some(64),
                map: Some("harbour".to_owned()),
                ..Status::default()
            });
            for said in agent.poll() {
                match said {
                    Incoming::Shutdown(shutdown) => {
                        println!("saving the world: {} ({} ms)", shutdown.reason, shutdown.deadline_ms);
                        agent.stopping();
                        return Ok(());
                    }
                    Incoming::Refused(fault) => eprintln!("Big Brother: {fault}"),
                    other => println!("{other:?}"),
                }
            }
        }
        std::thread::sleep(TICK);
    }
    Ok(())
}

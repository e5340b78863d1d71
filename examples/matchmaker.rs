//! A small matchmaker: players ask on a UDP port, and are told the address of a run of a process with a free place.
//!
//! `matchmaker PORT PROCESS AGENT...`, where an agent is `unix:/run/bigbrother/api.sock` or `http://127.0.0.1:7610`; one
//! that is lost is followed by the next. Which runs there are and how full they are it hears by watching the
//! directory; whom it has sent to a run and who has not arrived yet it counts itself.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use bigbrother::client::directory::{Change, Directory, Entry, Interest};
use bigbrother::spec::InstanceId;

/// By then a player has arrived, and the run counts it itself; or never will.
const ARRIVAL: Duration = Duration::from_secs(10);
/// Places of a run that does not say how many it has.
const PLACES: u32 = 16;

#[derive(Default)]
struct Lobby {
    runs: BTreeMap<InstanceId, Entry>,
    sent: Vec<(InstanceId, u64, Instant)>,
}

impl Lobby {
    /// The address of the fullest run that still has a place: players want company.
    fn seat(&mut self, now: Instant) -> Option<String> {
        self.sent.retain(|(_, _, at)| now.duration_since(*at) < ARRIVAL);
        let open = self.runs.values().filter(|run| run.ready && self.free(run) > 0);
        let run = open.min_by_key(|run| self.free(run))?;
        let port = run.ports.values().next()?;
        let seat = format!("{}:{}", run.address, port.port);
        self.sent.push((run.instance.clone(), run.run, now));
        Some(seat)
    }

    fn free(&self, run: &Entry) -> u32 {
        let said = run.status.clone().flatten().unwrap_or_default();
        let coming = self.sent.iter().filter(|(id, life, _)| *id == run.instance && *life == run.run).count();
        let taken = said.players.unwrap_or(0).saturating_add(coming.try_into().unwrap_or(u32::MAX));
        said.capacity.unwrap_or(PLACES).saturating_sub(taken)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [port, process, agents @ ..] = &args[..] else {
        return Err("usage: matchmaker PORT PROCESS AGENT...".into());
    };
    let agents = agents.iter().map(|agent| agent.parse()).collect::<Result<Vec<_>, _>>()?;
    let mut directory = Directory::of(agents);
    if let Ok(token) = std::env::var("BIGBROTHER_TOKEN") {
        directory = directory.with_token(token);
    }
    let mut watch = directory.watch(&Interest { process: Some(process.parse()?), status: true });

    let door = UdpSocket::bind(("127.0.0.1", port.parse()?))?;
    door.set_read_timeout(Some(Duration::from_millis(20)))?;
    let mut lobby = Lobby::default();
    println!("at the door on port {port}");
    loop {
        while let Some(change) = watch.next_within(Duration::from_millis(1))? {
            if let Change::Snapshot { reset: Some(why), .. } = &change {
                println!("began anew: {why}");
            }
            change.apply_to(&mut lobby.runs);
        }
        let mut hello = [0; 64];
        let Ok((_, player)) = door.recv_from(&mut hello) else { continue };
        let answer = lobby.seat(Instant::now()).unwrap_or_else(|| "full".to_owned());
        door.send_to(answer.as_bytes(), player)?;
    }
}

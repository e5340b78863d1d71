//! `demo-zone`: a small zone server, so that `dev` needs nothing but the binary.
//!
//! Ticks at 20 Hz, speaks the process API, answers UDP datagrams, and can be told to misbehave. One thread,
//! as in the games it stands for: when it hangs, everything of it hangs. It has no game in it.
//!
//! Datagrams: `ping` is answered by `pong NAME TICK`; `hang`, `leak`, `crash` and `exit`, from loopback only,
//! are answered by `NAME: WORD` and then done; anything else is answered by `what?`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::exit::{Exit, Failure};

mod voice;

use voice::Voice;

/// One tick.
const TICK: Duration = Duration::from_millis(50);
/// Ticks in a second: how often a status is sent.
const SECOND: u64 = 20;
/// A leak takes this much each tick, and crashes where a container would have been killed.
const LEAK_STEP: usize = 4 << 20;
const LEAK_END: usize = 512 << 20;

/// `demo-zone`
#[derive(Debug, Args)]
pub struct DemoZoneArgs {
    /// The UDP port to answer on; 0 for any.
    #[arg(long, value_name = "N")]
    port: u16,
    /// The address to answer on.
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    bind: IpAddr,
    /// What it calls itself.
    #[arg(long, value_name = "NAME", default_value = "zone")]
    name: String,
    /// Misbehave by itself.
    #[arg(long, value_enum, requires = "after")]
    fault: Option<Fault>,
    /// When: seconds after the start.
    #[arg(long, value_name = "SECS", requires = "fault")]
    after: Option<f64>,
}

/// How it misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Fault {
    /// Stops ticking, answering and beating, and ignores SIGTERM.
    Hang,
    /// Takes ever more memory.
    Leak,
    /// Dies of SIGABRT.
    Crash,
    /// Exits with code 3.
    Exit,
}

/// The server between two ticks.
struct Zone {
    name: String,
    socket: UdpSocket,
    voice: Voice,
    signals: SignalFd,
    tick: u64,
    players: u32,
    leak: Option<Vec<Vec<u8>>>,
}

/// Runs the server until it is asked to end.
pub fn run(args: DemoZoneArgs) -> Result<Exit, Failure> {
    let local = |what: &str| {
        let what = what.to_owned();
        move |source| Failure::Local { what, source }
    };
    let address = SocketAddr::new(args.bind, args.port);
    let socket = UdpSocket::bind(address).map_err(local(&format!("cannot listen on udp {address}")))?;
    let bound = socket.local_addr().map_err(local("cannot tell the own address"))?;
    let mut zone = Zone {
        voice: Voice::from_env().map_err(|e| local("cannot reach the agent")(io::Error::other(e)))?,
        signals: terminations().map_err(|e| local("cannot wait for SIGTERM")(e.into()))?,
        name: args.name,
        socket,
        tick: 0,
        players: 0,
        leak: None,
    };
    println!("{} listens on udp {bound}", zone.name);
    zone.voice.ready();
    let fault_at = args.after.map(|secs| Instant::now() + Duration::from_secs_f64(secs.max(0.0)));
    loop {
        let next = Instant::now() + TICK;
        if let Some(reason) = zone.asked_to_end() {
            println!("{} ends: {reason}", zone.name);
            zone.voice.stopping();
            return Ok(Exit::Ok);
        }
        zone.step();
        if let (Some(fault), Some(at)) = (args.fault, fault_at)
            && Instant::now() >= at
            && zone.leak.is_none()
        {
            zone.commit(fault);
        }
        zone.answer_until(next);
    }
}

/// SIGTERM and SIGINT as something to look at between ticks. A hung server looks at nothing.
fn terminations() -> nix::Result<SignalFd> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGTERM);
    mask.add(Signal::SIGINT);
    mask.thread_block()?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

impl Zone {
    /// Why to end, if it is asked to.
    fn asked_to_end(&mut self) -> Option<String> {
        if let Ok(Some(signal)) = self.signals.read_signal() {
            return Some(format!("signal {}", signal.ssi_signo));
        }
        self.voice.hear()
    }

    /// One tick of the game.
    fn step(&mut self) {
        self.tick += 1;
        self.voice.heartbeat();
        if self.tick % SECOND == 1 {
            // Players come and go, so that there is something to see.
            let seed = self.tick / SECOND * 7 + self.name.len() as u64 * 3;
            self.players = u32::try_from(seed % 17).unwrap_or(0);
            self.voice.status(self.players, 16, 20.0);
        }
        if self.tick.is_multiple_of(30 * SECOND) {
            println!("{} tick {}, {} players", self.name, self.tick, self.players);
        }
        if let Some(leaked) = &mut self.leak {
            // Written, because untouched memory costs nothing.
            leaked.push(vec![0xAB; LEAK_STEP]);
            if leaked.len() * LEAK_STEP > LEAK_END {
                std::process::abort();
            }
        }
    }

    /// Answers datagrams until the next tick.
    fn answer_until(&mut self, next: Instant) {
        loop {
            let left = next.saturating_duration_since(Instant::now());
            if left.is_zero() || self.socket.set_read_timeout(Some(left)).is_err() {
                return;
            }
            let mut datagram = [0; 64];
            if let Ok((length, from)) = self.socket.recv_from(&mut datagram) {
                self.answer(&datagram[..length], from);
            }
        }
    }

    fn answer(&mut self, datagram: &[u8], from: SocketAddr) {
        let word = String::from_utf8_lossy(datagram);
        let word = word.trim();
        let fault = Fault::from_str(word, false).ok().filter(|_| from.ip().is_loopback());
        let reply = match (word, fault) {
            ("ping", _) => format!("pong {} {}", self.name, self.tick),
            (_, Some(_)) => format!("{}: {word}", self.name),
            _ => "what?".to_owned(),
        };
        // Nobody may be listening any more, and no answer is owed.
        self.socket.send_to(reply.as_bytes(), from).ok();
        if let Some(fault) = fault {
            self.commit(fault);
        }
    }

    /// Misbehaves.
    fn commit(&mut self, fault: Fault) {
        println!("{} does what it was told: {fault:?}", self.name);
        match fault {
            Fault::Hang => loop {
                std::thread::sleep(Duration::from_secs(3600));
            },
            Fault::Leak => self.leak = Some(self.leak.take().unwrap_or_default()),
            Fault::Crash => std::process::abort(),
            Fault::Exit => std::process::exit(3),
        }
    }
}

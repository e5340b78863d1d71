//! Valve's A2S_INFO and Minecraft's server list ping, through the library `gamedig`.
//!
//! `gamedig` knows the formats, but blocks a thread, reads without bound, hears nothing of refused datagrams
//! and loops as long as a server bids it. So it never talks to a server: it talks to a relay here, on
//! loopback, which passes a bounded number of bytes, hears what the kernel says, and ends with the question.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ::gamedig::protocols::types::{GatherToggle, TimeoutSettings};
use ::gamedig::protocols::valve;
use ::gamedig::{GDError, GDErrorKind, minecraft};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::answer::{Answer, shown};
use super::{ProbeError, heard, thread, udp};
use crate::client::message::Player;

/// The longest answer of a Minecraft server: its icon is in it, 64x64 pixels in base64.
const MAX_PACKET: usize = 256 * 1024;

/// The largest number of datagrams of one question, in both directions.
const MAX_DATAGRAMS: usize = 16;

/// Every A2S datagram that stands alone begins so. Split ones, which no A2S_INFO needs, are dropped:
/// in them a server names the amount of memory that `gamedig` allocates.
const WHOLE: [u8; 4] = [0xff; 4];

const LOOPBACK: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

/// Asks a server that speaks A2S; waits at most `timeout`.
pub(super) async fn valve(
    server: SocketAddr,
    timeout: Duration,
    threads: Arc<Semaphore>,
) -> Result<Answer, ProbeError> {
    let relay = UdpSocket::bind(LOOPBACK).await.map_err(|e| heard(server, e))?;
    let address = relay.local_addr().map_err(|e| heard(server, e))?;
    // A lost datagram is sent again; A2S servers bear some questions a second.
    let patience = settings(timeout / 3, 2)?;
    let question = move || ask_valve(address, patience);
    converse(question, relay_datagrams(relay, server), timeout, threads).await
}

/// Asks a Minecraft (Java) server; waits at most `timeout`.
pub(super) async fn minecraft(
    server: SocketAddr,
    timeout: Duration,
    threads: Arc<Semaphore>,
) -> Result<Answer, ProbeError> {
    let relay = TcpListener::bind(LOOPBACK).await.map_err(|e| heard(server, e))?;
    let address = relay.local_addr().map_err(|e| heard(server, e))?;
    let patience = settings(timeout, 0)?;
    let question = move || ask_minecraft(address, patience);
    converse(question, relay_stream(relay, server), timeout, threads).await
}

fn settings(patience: Duration, retries: usize) -> Result<TimeoutSettings, ProbeError> {
    let patience = Some(patience.max(Duration::from_millis(1)));
    TimeoutSettings::new(patience, patience, patience, retries).map_err(fault)
}

/// Runs the library on a thread and the relay beside it; whichever fails first is the reason.
async fn converse(
    question: impl FnOnce() -> Result<Answer, GDError> + Send + 'static,
    relay: impl Future<Output = ProbeError>,
    timeout: Duration,
    threads: Arc<Semaphore>,
) -> Result<Answer, ProbeError> {
    let deadline = Instant::now() + timeout;
    let permit = thread(threads, deadline).await?;
    let thread = tokio::task::spawn_blocking(move || {
        let answer = question();
        drop(permit);
        answer
    });
    let outcome = timeout_at(deadline, async {
        tokio::select! {
            biased;
            answer = thread => match answer {
                Ok(answer) => answer.map_err(fault),
                Err(_) => Err(ProbeError::Malformed { what: "the library cannot read it".to_owned() }),
            },
            error = relay => Err(error),
        }
    });
    match outcome.await {
        Ok(Err(ProbeError::Timeout { .. })) | Err(_) => Err(ProbeError::Timeout { after: timeout }),
        Ok(outcome) => outcome,
    }
}

/// Passes datagrams between the library and the server; ends only by failing.
async fn relay_datagrams(library: UdpSocket, server: SocketAddr) -> ProbeError {
    let mut asker = None;
    let error = match pass_datagrams(&library, server, &mut asker).await {
        Err(error) => heard(server, error),
        Ok(()) => ProbeError::Malformed { what: "it never comes to the point".to_owned() },
    };
    if let Some(asker) = asker {
        // An empty datagram is no answer: the library gives up, and its thread is free.
        let _ = library.try_send_to(&[], asker);
    }
    error
}

async fn pass_datagrams(
    library: &UdpSocket,
    server: SocketAddr,
    asker: &mut Option<SocketAddr>,
) -> io::Result<()> {
    let outer = udp::connected(server).await?;
    let (mut question, mut answer) = ([0; 2048], [0; 8192]);
    for _ in 0..MAX_DATAGRAMS {
        tokio::select! {
            received = library.recv_from(&mut question) => {
                let (length, from) = received?;
                *asker = Some(from);
                outer.send(&question[..length]).await?;
            }
            received = outer.recv(&mut answer) => {
                let datagram = &answer[..received?];
                if let Some(asker) = *asker && datagram.starts_with(&WHOLE) {
                    library.send_to(datagram, asker).await?;
                }
            }
        }
    }
    Ok(())
}

/// Passes one question to the server and the first packet of its answer back; ends only by failing.
async fn relay_stream(library: TcpListener, server: SocketAddr) -> ProbeError {
    let relay = async {
        let mut outer = TcpStream::connect(server).await?;
        let (mut inner, _) = library.accept().await?;
        let (mut from_server, mut to_server) = outer.split();
        let (mut from_library, mut to_library) = inner.split();
        let answer = async {
            let packet = packet(&mut from_server).await?;
            to_library.write_all(&packet).await?;
            // The end of the stream is what the library waits for; not every server closes it.
            to_library.shutdown().await
        };
        // A server that has answered need not read the rest of the question.
        let question = async {
            let _ = tokio::io::copy(&mut from_library, &mut to_server).await;
            Ok::<_, io::Error>(())
        };
        tokio::try_join!(answer, question)
    };
    match relay.await {
        Ok(_) => std::future::pending().await,
        Err(error) => match error.kind() {
            io::ErrorKind::InvalidData => ProbeError::Malformed { what: error.to_string() },
            io::ErrorKind::UnexpectedEof => ProbeError::Malformed { what: "it ends early".to_owned() },
            _ => heard(server, error),
        },
    }
}

/// A packet of Minecraft with its length before it: 7 bits a byte with continuation (0x80), least
/// significant first.
async fn packet(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let (mut packet, mut length) = (Vec::new(), 0usize);
    loop {
        let byte = stream.read_u8().await?;
        length |= usize::from(byte & 0x7f) << (7 * packet.len());
        packet.push(byte);
        if length > MAX_PACKET || packet.len() > 3 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is too long"));
        }
        if byte & 0x80 == 0 {
            break;
        }
    }
    let head = packet.len();
    packet.resize(head + length, 0);
    stream.read_exact(&mut packet[head..]).await?;
    Ok(packet)
}

fn ask_valve(relay: SocketAddr, patience: TimeoutSettings) -> Result<Answer, GDError> {
    let nothing_else = valve::GatheringSettings {
        players: GatherToggle::Skip,
        rules: GatherToggle::Skip,
        check_app_id: false,
    };
    let info = valve::query(&relay, valve::Engine::Source(None), Some(nothing_else), Some(patience))?.info;
    Ok(Answer {
        players: Some(u32::from(info.players_online.saturating_sub(info.players_bots))),
        capacity: Some(u32::from(info.players_maximum)),
        map: shown(info.map.as_bytes()),
        name: shown(info.name.as_bytes()),
        game: shown(info.game_mode.as_bytes()),
        version: shown(info.game_version.as_bytes()),
        ..Answer::default()
    })
}

fn ask_minecraft(relay: SocketAddr, patience: TimeoutSettings) -> Result<Answer, GDError> {
    let status = minecraft::protocol::query_java(&relay, Some(patience), None)?;
    let player = |player: &minecraft::Player| {
        Some(Player {
            name: shown(player.name.as_bytes())?,
            id: shown(player.id.as_bytes()),
            ..Player::default()
        })
    };
    // A sample of them, as the server likes.
    let list = status.players.iter().flatten().filter_map(player).collect();
    Ok(Answer {
        players: Some(status.players_online),
        capacity: Some(status.players_maximum),
        name: description(&status.description),
        version: shown(status.game_version.as_bytes()),
        player_list: Some(list),
        ..Answer::default()
    })
}

/// The text of a description, which is JSON: a string or a chat component.
fn description(json: &str) -> Option<String> {
    let description: serde_json::Value = serde_json::from_str(json).ok()?;
    shown(description.as_str().or_else(|| description["text"].as_str())?.as_bytes())
}

fn fault(error: GDError) -> ProbeError {
    match error.kind {
        // The relay is always there: nothing received means that the server has sent nothing.
        GDErrorKind::PacketReceive => ProbeError::Timeout { after: Duration::ZERO },
        kind => ProbeError::Malformed {
            what: match error.source {
                Some(source) => format!("{kind:?}: {source}"),
                None => format!("{kind:?}"),
            },
        },
    }
}

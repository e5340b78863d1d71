//! Carries a [`Dialogue`] over a socket.
//!
//! One connected socket a question: only the server's own address can answer it, and the kernel's "nobody
//! listens there" is heard at once.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use super::answer::Answer;
use super::dialogue::{Dialogue, Step};
use super::{ProbeError, heard};

/// So many datagrams of a server are looked at for one question; a flood is no answer.
const MAX_DATAGRAMS: usize = 64;

/// A socket that talks to `server` only.
pub(super) async fn connected(server: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    Ok(socket)
}

/// Asks `server` and waits at most `timeout`. What is lost is sent again, as often as the dialogue allows,
/// evenly over that time.
pub(super) async fn ask(
    server: SocketAddr,
    mut dialogue: impl Dialogue,
    timeout: Duration,
) -> Result<Answer, ProbeError> {
    let deadline = Instant::now() + timeout;
    let patience = timeout / dialogue.attempts();
    let socket = connected(server).await.map_err(|e| heard(server, e))?;
    let mut datagram = [0; 8192];
    let (mut attempt, mut seen, mut fault) = (0, 0, None);
    let mut resend = send(&socket, server, &dialogue, attempt, deadline, patience).await?;
    loop {
        match timeout_at(resend, socket.recv(&mut datagram)).await {
            Ok(Ok(length)) => {
                seen += 1;
                match dialogue.receive(&datagram[..length]) {
                    Ok(Step::Done(answer)) => return Ok(answer),
                    Ok(Step::Ask) => {
                        resend = send(&socket, server, &dialogue, attempt, deadline, patience).await?;
                    }
                    Err(malformed) => fault = Some(malformed.to_string()),
                }
                if seen == MAX_DATAGRAMS {
                    let what = fault.unwrap_or_else(|| "it never comes to the point".to_owned());
                    return Err(ProbeError::Malformed { what });
                }
            }
            Ok(Err(error)) => return Err(heard(server, error)),
            Err(_) if resend < deadline => {
                attempt += 1;
                resend = send(&socket, server, &dialogue, attempt, deadline, patience).await?;
            }
            Err(_) => {
                return Err(match fault {
                    Some(what) => ProbeError::Malformed { what },
                    None => ProbeError::Timeout { after: timeout },
                });
            }
        }
    }
}

/// Sends the request and tells when to lose patience: at the deadline if this was the last attempt.
async fn send(
    socket: &UdpSocket,
    server: SocketAddr,
    dialogue: &impl Dialogue,
    attempt: u32,
    deadline: Instant,
    patience: Duration,
) -> Result<Instant, ProbeError> {
    socket.send(&dialogue.request(attempt)).await.map_err(|e| heard(server, e))?;
    let last = attempt + 1 >= dialogue.attempts();
    Ok(if last { deadline } else { deadline.min(Instant::now() + patience) })
}

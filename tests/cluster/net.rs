//! A net in between: each peer is reached through a proxy that can cut whom it is told to from whom.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bigbrother::cluster::node::Settings;
use bigbrother::cluster::wire::frame::{Decoder, MAX_GREETING};
use bigbrother::cluster::wire::{Hello, decode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

use super::peers::Peer;

#[derive(Default)]
struct Ways {
    /// (from, to)
    cut: Mutex<BTreeSet<(String, String)>>,
    /// See [`Net::keep_waiting`].
    keep_waiting: AtomicBool,
}

type Cuts = Arc<Ways>;

/// Connections go on to where they were meant for, unless they are cut: then they stay open and nothing moves.
pub struct Net {
    cuts: Cuts,
    runtime: Option<Runtime>,
}

impl Net {
    /// From now on the peers of these settings reach each other, and are reached, through it.
    pub fn before(all: &mut [Settings]) -> Net {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let cuts = Cuts::default();
        let mut peers = all[0].peers.clone();
        for (host, address) in &mut peers {
            let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
            let real = std::mem::replace(address, listener.local_addr().unwrap().to_string());
            runtime.spawn(accept(listener, real, host.to_string(), cuts.clone()));
        }
        all.iter_mut().for_each(|settings| settings.peers.clone_from(&peers));
        Net { cuts, runtime: Some(runtime) }
    }

    /// Nothing that `from` says to `to` arrives, nor an answer.
    pub fn cut(&self, from: &str, to: &str) {
        self.cuts.cut.lock().unwrap().insert((from.to_owned(), to.to_owned()));
    }

    pub fn heal(&self) {
        self.cuts.cut.lock().unwrap().clear();
    }

    /// A connection on which something is said while it is cut stays so when all is healed: the longer a cut was, the
    /// longer TCP waits before it sends anew.
    pub fn keep_waiting(&self) {
        self.cuts.keep_waiting.store(true, Ordering::Relaxed);
    }
}

/// Neither what it says arrives, nor what it is told.
pub fn cut_off(net: &Net, away: &Peer, peers: &[Peer]) {
    for other in peers.iter().map(Peer::name).filter(|other| *other != away.name()) {
        net.cut(away.name().as_str(), other.as_str());
        net.cut(other.as_str(), away.name().as_str());
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn accept(listener: TcpListener, real: String, to: String, cuts: Cuts) {
    while let Ok((socket, _)) = listener.accept().await {
        tokio::spawn(carry(socket, real.clone(), to.clone(), cuts.clone()));
    }
}

async fn carry(mut socket: TcpStream, real: String, to: String, cuts: Cuts) -> Option<()> {
    let mut decoder = Decoder::new(MAX_GREETING);
    let mut first = Vec::new();
    let hello: Hello = loop {
        let mut chunk = [0; 4096];
        let read = socket.read(&mut chunk).await.ok().filter(|read| *read > 0)?;
        first.extend_from_slice(&chunk[..read]);
        decoder.feed(&chunk[..read]);
        if let Some(frame) = decoder.next_frame().ok()? {
            break decode(&frame.body).ok()?;
        }
    };
    let way = (hello.host.to_string(), to);
    open(&cuts, &way).await;
    let mut peer = TcpStream::connect(&real).await.ok()?;
    peer.write_all(&first).await.ok()?;
    let ((from_host, to_host), (from_peer, to_peer)) = (socket.split(), peer.split());
    tokio::select! {
        _ = pump(from_host, to_peer, &cuts, &way) => {}
        _ = pump(from_peer, to_host, &cuts, &way) => {}
    }
    Some(())
}

async fn open(cuts: &Cuts, way: &(String, String)) {
    let is_cut = || cuts.cut.lock().unwrap().contains(way);
    let was_cut = is_cut();
    while is_cut() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    if was_cut && cuts.keep_waiting.load(Ordering::Relaxed) {
        std::future::pending().await
    }
}

async fn pump(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    cuts: &Cuts,
    way: &(String, String),
) -> std::io::Result<()> {
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut chunk).await?;
        open(cuts, way).await;
        if read == 0 {
            return Ok(());
        }
        to.write_all(&chunk[..read]).await?;
    }
}

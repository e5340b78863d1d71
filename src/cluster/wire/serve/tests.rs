//! Connections between memory and memory: how long a quiet one is kept.

use std::time::Instant;

use super::*;

/// How long a connection may be quiet here.
const SHORT: Duration = Duration::from_millis(300);
const WAIT: Duration = Duration::from_secs(10);

/// Answers after a while.
struct Slow;

impl Service for Slow {
    fn ours(&self) -> Ours {
        unreachable!("the handshake is over")
    }

    fn peerage(&self, _: &HostName) -> Peerage {
        Peerage::Peer
    }

    async fn answer(&self, _: &Hello, _: Kind, body: Vec<u8>, _: &Outlet) -> Result<Vec<u8>, String> {
        tokio::time::sleep(4 * SHORT).await;
        Ok(body)
    }

    async fn take_snapshot(&self, _: &Hello, _: Vec<u8>, _: Vec<u8>) -> Result<Vec<u8>, String> {
        unreachable!("none is sent")
    }
}

/// Answers at once, and shows when that has gone out.
struct Told(mpsc::Sender<tokio::sync::oneshot::Receiver<()>>);

impl Service for Told {
    fn ours(&self) -> Ours {
        unreachable!("the handshake is over")
    }

    fn peerage(&self, _: &HostName) -> Peerage {
        Peerage::Peer
    }

    async fn answer(&self, _: &Hello, _: Kind, body: Vec<u8>, outlet: &Outlet) -> Result<Vec<u8>, String> {
        self.0.try_send(outlet.written()).unwrap();
        Ok(body)
    }

    async fn take_snapshot(&self, _: &Hello, _: Vec<u8>, _: Vec<u8>) -> Result<Vec<u8>, String> {
        unreachable!("none is sent")
    }
}

#[tokio::test]
async fn an_answer_is_out_when_it_is_written_and_not_before() {
    let (host, purpose) = ("beta".parse().unwrap(), Purpose::Api);
    let ours = Ours { cluster: "pirates".to_owned(), host, incarnation: 1, history: Some(7), id: None };
    let hello = ours.hello(&"alpha".parse().unwrap(), None, purpose);
    // Less than the answer takes.
    let (near, far) = tokio::io::duplex(64);
    let (reader, writer) = split(Box::new(near));
    let (told, mut heard) = mpsc::channel(1);
    let serving = tokio::spawn(answer_requests(Arc::new(Told(told)), hello, reader, writer, WAIT));
    let (mut answers, mut asking) = split(Box::new(far));
    let ask = Frame { kind: Kind::Tunnel, request: 1, ttl_ms: 60_000, body: vec![7; 1_000] };
    asking.send(&[ask]).await.unwrap();
    let mut written = tokio::time::timeout(WAIT, heard.recv()).await.expect("it is asked").unwrap();
    // It is given every chance to be too early.
    for _ in 0..100 {
        tokio::task::yield_now().await;
        assert_eq!(written.try_recv(), Err(tokio::sync::oneshot::error::TryRecvError::Empty));
    }
    let answer = tokio::time::timeout(WAIT, answers.next()).await.expect("no answer").expect("let go");
    assert_eq!(answer.body.len(), 1_000);
    let out = tokio::time::timeout(WAIT, written).await;
    assert!(out.is_ok(), "nobody says that it is written");
    serving.abort();
}

/// The other end stays open and says nothing: as that of a host that has lost its power.
#[tokio::test]
async fn a_quiet_connection_is_let_go_and_one_with_a_request_at_work_is_not() {
    let (host, purpose) = ("beta".parse().unwrap(), Purpose::Host);
    let ours = Ours { cluster: "pirates".to_owned(), host, incarnation: 1, history: Some(7), id: None };
    let hello = ours.hello(&"alpha".parse().unwrap(), None, purpose);
    let (near, far) = tokio::io::duplex(4096);
    let (reader, writer) = split(Box::new(near));
    let serving = tokio::spawn(answer_requests(Arc::new(Slow), hello, reader, writer, SHORT));
    let (mut answers, mut asking) = split(Box::new(far));
    let ask = |request| Frame { kind: Kind::Report, request, ttl_ms: 60_000, body: vec![7] };
    for request in [1, 2] {
        asking.send(&[ask(request)]).await.unwrap();
        let answer = tokio::time::timeout(WAIT, answers.next()).await.expect("no answer").expect("let go");
        assert_eq!((answer.kind, answer.request), (Kind::Answer, request));
    }
    let answered = Instant::now();
    tokio::time::timeout(WAIT, serving).await.expect("it is kept").unwrap();
    assert!(answered.elapsed() > SHORT / 2, "let go after {:?}", answered.elapsed());
}

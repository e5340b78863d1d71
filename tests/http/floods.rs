//! Crowds, slow ones and garbage: whoever behaves is answered beside them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::secured::{BOSS, OPERATOR, READER, Secured};
use super::server::{DEADLINE, Server};

/// Whoever behaves waits no longer than this, on a busy machine.
const SOON: Duration = Duration::from_secs(2);

/// Pests in threads of their own, until they are dropped.
struct Pests {
    done: Arc<AtomicBool>,
    made: Arc<AtomicUsize>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Pests {
    /// Each pesters again and again.
    fn start(count: usize, pester: impl Fn(usize) + Send + Clone + 'static) -> Pests {
        let (done, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let threads = (0..count).map(|number| {
            let (done, made, pester) = (done.clone(), made.clone(), pester.clone());
            std::thread::spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    pester(number);
                    made.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        Pests { threads: threads.collect(), done, made }
    }

    async fn at_least(&self, count: usize) {
        let began = Instant::now();
        while self.made.load(Ordering::Relaxed) < count {
            assert!(began.elapsed() < DEADLINE, "only {:?} of {count}", self.made);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Pests {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_that_say_nothing_keep_nobody_with_a_token_out() {
    let secured = Secured::over_tls().await;
    let address = secured.server.tcp;
    // Known ones that stay, silently, while many more strangers come than may be there at once.
    let known = secured.connect().await;
    let (mut asking, connection) = hyper::client::conn::http1::handshake(TokioIo::new(known)).await.unwrap();
    tokio::spawn(connection);
    assert_eq!(ask(&mut asking, "GET", READER, "").await, 200);
    let held = Arc::new(std::sync::Mutex::new(Vec::new()));
    let holding = held.clone();
    let pests = Pests::start(2, move |_| {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        if holding.lock().unwrap().len() % 3 == 0 {
            // A hello that never ends.
            let _ = std::io::Write::write_all(&mut stream, &[0x16, 3, 1, 2, 0, 1]);
        }
        holding.lock().unwrap().push(stream);
        std::thread::sleep(Duration::from_millis(2));
    });
    pests.at_least(320).await;
    for _ in 0..5 {
        let began = Instant::now();
        let answer = secured.send("GET", "/v1/status", Some(READER), "").await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert!(began.elapsed() < SOON, "{:?} beside {:?} strangers", began.elapsed(), pests.made);
    }
    assert_eq!(ask(&mut asking, "GET", READER, "").await, 200, "who is known is not sent away");
}

async fn ask(asking: &mut SendRequest<Full<Bytes>>, method: &str, token: &str, body: &str) -> u16 {
    let path = if method == "GET" { "/v1/status" } else { "/v1/stop" };
    let request = hyper::Request::builder().method(method).uri(path).header("host", "x");
    let request = request.header("authorization", format!("Bearer {token}"));
    let request = request.header("content-type", "application/json");
    let request = request.body(Full::new(Bytes::copy_from_slice(body.as_bytes()))).unwrap();
    let answer = tokio::time::timeout(DEADLINE, asking.send_request(request)).await.unwrap().unwrap();
    let status = answer.status().as_u16();
    if status == 429 {
        assert_eq!(answer.headers()["retry-after"], "1");
    }
    answer.into_body().collect().await.unwrap();
    status
}

async fn asker<S>(stream: S) -> SendRequest<Full<Bytes>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (asking, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    asking
}

#[tokio::test]
async fn changes_have_a_pace_for_each_token_and_none_on_the_unix_socket() {
    let secured = Secured::over_tls().await;
    const STOP: &str = r#"{"target":{"instance":"zone.0"}}"#;
    let mut statuses = Vec::new();
    let mut asking = asker(secured.connect().await).await;
    let began = Instant::now();
    for _ in 0..400 {
        statuses.push(ask(&mut asking, "POST", OPERATOR, STOP).await);
    }
    let taken = statuses.iter().filter(|status| **status == 200).count();
    // 100 at once, and 50 a second.
    let most = 100 + 50 * (began.elapsed().as_secs_f64() + 1.0) as usize;
    assert!((100..=most).contains(&taken), "{taken} in {:?}", began.elapsed());
    assert!(statuses.iter().all(|status| [200, 429].contains(status)), "{statuses:?}");
    assert_eq!(ask(&mut asking, "POST", BOSS, STOP).await, 200, "another one has a pace of its own");
    assert_eq!(ask(&mut asking, "GET", OPERATOR, "").await, 200, "and looking has none");
    let mut local = asker(UnixStream::connect(secured.server.socket()).await.unwrap()).await;
    for _ in 0..200 {
        assert_eq!(ask(&mut local, "POST", "", STOP).await, 200);
    }
}

#[tokio::test]
async fn whoever_guesses_is_slowed_down_and_his_neighbour_is_not() {
    let secured = Secured::over_tls().await;
    let mut asking = asker(secured.connect().await).await;
    let mut statuses = Vec::new();
    for guess in 0..200 {
        statuses.push(ask(&mut asking, "GET", &format!("bb_{guess}"), "").await);
    }
    assert_eq!(statuses[..50], [401; 50]);
    assert!(statuses.iter().filter(|status| **status == 429).count() > 50, "{statuses:?}");
    assert_eq!(ask(&mut asking, "GET", READER, "").await, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_and_slow_heads_and_bodies_cost_nobody_else_anything() {
    let server = Server::start().await;
    let (address, socket) = (server.tcp, server.socket());
    let pests = Pests::start(4, move |number| {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        let noise: Vec<u8> = (0..20_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let said: &[u8] = match number {
            0 => &noise,
            1 => b"GET /v1/instances HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
            2 => b"POST /v1/stop HTTP/1.1\r\nhost: 127.0.0.1\r\ntransfer-encoding: chunked\r\n\r\nffffffff\r\nx",
            _ => b"\r\n\r\n\r\n\r\nGET",
        };
        let _ = stream.write_all(said);
        let _ = stream.set_read_timeout(Some(Duration::from_millis(20)));
        let _ = stream.read(&mut [0; 4096]);
    });
    // Slow ones: a head and a body that come byte by byte.
    let mut slow = Vec::new();
    for number in 0..200 {
        let mut stream = UnixStream::connect(&socket).await.unwrap();
        let head: &[u8] = match number % 2 {
            0 => b"GET /v1/healthz HTTP/1.1\r\nhost: x\r\nx-slow: ",
            _ => b"POST /v1/stop HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 900\r\n\r\n{",
        };
        stream.write_all(head).await.unwrap();
        slow.push(stream);
    }
    pests.at_least(100).await;
    for path in ["/v1/healthz", "/v1/status", "/v1/instances"] {
        for stream in &mut slow {
            let _ = stream.write_all(b" ").await;
        }
        let began = Instant::now();
        assert_eq!(server.get(path).await.status, 200);
        let tcp = [("host", address.to_string())].map(|(name, value)| (name, value));
        let headers: Vec<_> = tcp.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let stream = TcpStream::connect(address).await.unwrap();
        let answer = super::server::exchange(stream, "GET", path, &headers, "").await;
        assert_eq!(answer.status(), 200);
        assert!(began.elapsed() < SOON, "{path}: {:?}", began.elapsed());
    }
    // And a body that does not come is given up.
    let began = Instant::now();
    let mut last = String::new();
    let read = tokio::io::AsyncReadExt::read_to_string(&mut slow[1], &mut last);
    let _ = tokio::time::timeout(Duration::from_secs(20), read).await.expect("it is answered");
    assert!(last.starts_with("HTTP/1.1 504"), "{last} after {:?}", began.elapsed());
}

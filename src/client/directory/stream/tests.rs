//! Agents of which the bytes come one by one, for ever: whoever asks goes on when its own time is over.

use std::net::TcpListener;
use std::sync::mpsc;
use std::thread;

use super::super::Agents;
use super::super::blocking::exchange;
use super::*;

/// Says this, and then a byte now and then for as long as somebody is there.
fn drip(mut socket: TcpStream, first: &[u8]) {
    let mut said = socket.write_all(first);
    while said.is_ok() {
        thread::sleep(Duration::from_millis(10));
        said = socket.write_all(b"x");
    }
}

/// Why such an agent has not answered in time.
fn asked(scheme: &str, trusting: Trusting, agent: impl FnOnce(TcpStream) + Send + 'static) -> io::Error {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("{scheme}://{}", listener.local_addr().unwrap()).parse().unwrap();
    thread::spawn(move || agent(listener.accept().unwrap().0));
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let agents = Agents { trusting, ..Agents::of([]) };
        let until = Instant::now() + Duration::from_millis(500);
        tell.send(exchange(&address, &agents, "/v1/directory", until).map(drop)).unwrap();
    });
    let heard = told.recv_timeout(Duration::from_secs(10)).expect("an agent that drips holds who asks it");
    heard.expect_err("that is no answer")
}

#[test]
fn an_answer_that_drips_is_given_up() {
    let error = asked("http", Trusting::default(), |socket| drip(socket, b"HTTP/1.1 200 OK\r\nx: "));
    assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
}

#[cfg(feature = "host")]
mod over_tls {
    use std::path::Path;
    use std::sync::Arc;

    use rustls::{ServerConfig, ServerConnection};

    use super::super::super::trust::Trust;
    use super::*;
    use crate::cluster::tls::{certificates, issue, key};

    /// The head of a record whose bytes are long in coming.
    const fn record(of: u8) -> [u8; 5] {
        [of, 3, 3, 0x40, 0]
    }

    fn trusting(folder: &Path) -> Trusting {
        issue::init(folder, "pirates").unwrap();
        Trusting(Some(Trust::in_cas_of(&folder.join(issue::CA_CERT)).unwrap()))
    }

    #[test]
    fn a_handshake_that_drips_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let error = asked("https", trusting(dir.path()), |socket| drip(socket, &record(22)));
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
    }

    #[test]
    fn a_record_that_drips_after_the_handshake_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let trusting = trusting(dir.path());
        let host = "alpha".parse().unwrap();
        let [cert, of_cert] =
            issue::issue_api(dir.path(), &host, &["127.0.0.1".to_owned()], dir.path()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(certificates(&cert).unwrap(), key(&of_cert).unwrap())
            .unwrap();
        let (greeted, greeting) = mpsc::channel();
        let error = asked("https", trusting, move |mut socket| {
            let mut session = ServerConnection::new(Arc::new(config)).unwrap();
            while session.is_handshaking() {
                session.complete_io(&mut socket).unwrap();
            }
            greeted.send(()).unwrap();
            drip(socket, &record(23));
        });
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
        greeting.try_recv().expect("it was not even greeted");
    }
}

//! Servers that answer wrongly, too much or not at all.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Instant;

use bigbrother::agent::probe::{Answer, ProbeError, ProbeTarget};
use bigbrother::spec::QueryProtocol;

use super::asker::{Asker, SECOND, query};

/// A UDP server that answers each datagram with what `reply` makes of it (`None`: silence).
fn fake_udp(mut reply: impl FnMut(&[u8]) -> Option<Vec<u8>> + Send + 'static) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut datagram = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut datagram) {
            if let Some(reply) = reply(&datagram[..length]) {
                let _ = socket.send_to(&reply, from);
            }
        }
    });
    address
}

/// A TCP server that does `serve` with each connection, and closes it when it has read all.
fn fake_tcp(serve: impl Fn(&mut TcpStream) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            serve(&mut stream);
            // Closing with something unread would reset the connection and lose what was written.
            let _ = stream.shutdown(Shutdown::Write);
            let _ = stream.read_to_end(&mut Vec::new());
        }
    });
    address
}

const UDP_PROTOCOLS: [QueryProtocol; 4] =
    [QueryProtocol::Teeworlds, QueryProtocol::Ddnet, QueryProtocol::Quake3, QueryProtocol::Valve];

#[test]
fn garbage_is_malformed() {
    let mut asker = Asker::new();
    for protocol in UDP_PROTOCOLS {
        let server = fake_udp(|_| Some(b"\xff\xff\xff\xff\xfe garbage".to_vec()));
        let outcome = asker.ask(query(protocol, server), SECOND);
        assert!(matches!(outcome, Err(ProbeError::Malformed { .. })), "{protocol:?}: {outcome:?}");
    }
    let server = fake_tcp(|stream| stream.write_all(b"\xff\xff\xff\xff\xff\xffHTTP/1.1 400\r\n").unwrap());
    let outcome = asker.ask(query(QueryProtocol::Minecraft, server), SECOND);
    assert!(matches!(outcome, Err(ProbeError::Malformed { .. })), "{outcome:?}");
}

#[test]
fn silence_is_a_timeout_and_lost_datagrams_are_sent_again() {
    let mut asker = Asker::new();
    for (protocol, attempts) in UDP_PROTOCOLS.into_iter().zip([4, 4, 1, 3]) {
        let (count, counted) = std::sync::mpsc::channel();
        let server = fake_udp(move |_| {
            let _ = count.send(());
            None
        });
        let outcome = asker.ask(query(protocol, server), SECOND);
        assert!(matches!(outcome, Err(ProbeError::Timeout { after: SECOND })), "{protocol:?}: {outcome:?}");
        assert_eq!(counted.try_iter().count(), attempts, "datagrams of {protocol:?}");
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let outcome = asker.ask(query(QueryProtocol::Minecraft, listener.local_addr().unwrap()), SECOND);
    assert!(matches!(outcome, Err(ProbeError::Timeout { after: SECOND })), "{outcome:?}");
}

#[test]
fn nobody_there_is_refused_at_once() {
    let mut asker = Asker::new();
    let free = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for protocol in [&UDP_PROTOCOLS[..], &[QueryProtocol::Minecraft]].concat() {
        let before = Instant::now();
        let outcome = asker.ask(query(protocol, free), 10 * SECOND);
        assert!(matches!(outcome, Err(ProbeError::Refused { .. })), "{protocol:?}: {outcome:?}");
        assert!(before.elapsed() < 3 * SECOND, "{protocol:?}: {:?}", before.elapsed());
    }
    let before = Instant::now();
    let reason = asker.ask(ProbeTarget::Tcp { address: free }, SECOND).unwrap_err().reason();
    assert_eq!(reason, format!("nobody listens on {free}: Connection refused (os error 111)"));
    // A runtime waits for its threads when it goes: the library's have been sent home.
    drop(asker);
    assert!(before.elapsed() < 3 * SECOND, "threads stayed for {:?}", before.elapsed());
}

#[test]
fn a_wrong_token_is_no_sign_of_life() {
    let mut asker = Asker::new();
    let server = fake_udp(|asked| match asked[0] {
        0x04 => Some([&[4, 0, 0], &asked[8..12], b"\x05srvt"].concat()),
        // Addressed to the token after ours.
        _ => Some([b"\x21", &[asked[5].wrapping_add(1)], &asked[6..9], b"srvt\xff\xff\xff\xffinf3"].concat()),
    });
    match asker.ask(query(QueryProtocol::Teeworlds, server), SECOND) {
        Err(ProbeError::Malformed { what }) => assert_eq!(what, "it carries another token than ours"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn half_an_answer_is_malformed_and_a_whole_one_after_it_counts() {
    const STATUS: &[u8] =
        b"\xff\xff\xff\xffstatusResponse\n\\mapname\\q3dm17\\sv_maxclients\\16\n5 30 \"a\"\n";
    let mut asker = Asker::new();
    let server = fake_udp(|_| Some(STATUS[..40].to_vec()));
    let outcome = asker.ask(query(QueryProtocol::Quake3, server), SECOND);
    assert!(matches!(outcome, Err(ProbeError::Malformed { .. })), "{outcome:?}");

    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let server = socket.local_addr().unwrap();
    thread::spawn(move || {
        let (_, from) = socket.recv_from(&mut [0; 64]).unwrap();
        socket.send_to(&STATUS[..40], from).unwrap();
        socket.send_to(STATUS, from).unwrap();
    });
    let answer = asker.ask(query(QueryProtocol::Quake3, server), SECOND).unwrap();
    assert_eq!((answer.players, answer.capacity, answer.map.as_deref()), (Some(1), Some(16), Some("q3dm17")));
}

/// A2S_INFO as a server of protocol 17 writes it: 7 of 24 players, 2 of them bots.
fn a2s_info() -> Vec<u8> {
    [
        &b"\xff\xff\xff\xff\x49\x11A server\0cp_dustbowl\0tf\0Team Fortress\0"[..],
        &[0xb8, 0x01, 7, 24, 2],
        b"dl\0\x018622567\0\0",
    ]
    .concat()
}

#[test]
fn valve_servers_are_asked_with_their_challenge() {
    let mut asker = Asker::new();
    let server = fake_udp(|asked| match asked.strip_prefix(b"\xff\xff\xff\xffTSource Engine Query\0") {
        Some(b"") => Some(b"\xff\xff\xff\xffAtoken".to_vec()),
        Some(b"token") => Some(a2s_info()),
        _ => None,
    });
    let answer = asker.ask(query(QueryProtocol::Valve, server), SECOND).unwrap();
    let expected = Answer {
        players: Some(5),
        capacity: Some(24),
        map: Some("cp_dustbowl".into()),
        name: Some("A server".into()),
        game: Some("Team Fortress".into()),
        version: Some("8622567".into()),
        ping_ms: None,
        player_list: None,
    };
    assert_eq!(answer, expected);
}

#[test]
fn a_valve_server_can_neither_keep_us_busy_nor_fill_our_memory() {
    let mut asker = Asker::new();
    let endless = fake_udp(|_| Some(b"\xff\xff\xff\xffAtoken".to_vec()));
    let outcome = asker.ask(query(QueryProtocol::Valve, endless), 2 * SECOND);
    assert!(matches!(outcome, Err(ProbeError::Malformed { .. })), "{outcome:?}");
    // One part of a split datagram: that would be put together from as many parts as it says.
    let split = fake_udp(|_| Some(b"\xfe\xff\xff\xff\0\0\0\0\0\0\xe0\x04...".to_vec()));
    let outcome = asker.ask(query(QueryProtocol::Valve, split), SECOND);
    assert!(matches!(outcome, Err(ProbeError::Timeout { .. })), "{outcome:?}");
}

/// A packet of Minecraft: the length of all, packet id 0, the length of the text, the text.
fn minecraft_status() -> Vec<u8> {
    let text = br#"{"version":{"name":"1.21.4","protocol":769},"players":{"max":20,"online":3},"description":{"text":"Our world"}}"#;
    let body = [&[0, text.len() as u8][..], text].concat();
    [&[body.len() as u8][..], &body].concat()
}

#[test]
fn minecraft_servers_answer_whether_they_close_or_not() {
    assert!(minecraft_status().len() < 128, "one byte tells the lengths");
    let mut asker = Asker::new();
    for closes in [true, false] {
        let server = fake_tcp(move |stream| {
            let mut asked = [0; 64];
            let length = stream.read(&mut asked).unwrap();
            assert!(length > 2 && asked[1] == 0, "no handshake: {:?}", &asked[..length]);
            stream.write_all(&minecraft_status()).unwrap();
            if !closes {
                thread::sleep(60 * SECOND);
            }
        });
        let answer = asker.ask(query(QueryProtocol::Minecraft, server), SECOND).unwrap();
        assert_eq!((answer.players, answer.capacity), (Some(3), Some(20)));
        assert_eq!((answer.version.as_deref(), answer.name.as_deref()), (Some("1.21.4"), Some("Our world")));
    }
}

#[test]
fn a_minecraft_server_cannot_fill_our_memory() {
    let (sent, seen) = std::sync::mpsc::channel();
    let server = fake_tcp(move |stream| {
        let mut total = 0;
        // A length of 2 GiB, and then without end.
        let _ = stream.write_all(&[0xff, 0xff, 0xff, 0xff, 0x07]);
        while total < 64 << 20 {
            match stream.write(&[0; 65536]) {
                Ok(n) => total += n,
                Err(_) => break,
            }
        }
        let _ = sent.send(total);
    });
    let outcome = Asker::new().ask(query(QueryProtocol::Minecraft, server), 5 * SECOND);
    assert!(matches!(outcome, Err(ProbeError::Malformed { .. })), "{outcome:?}");
    let total = seen.recv_timeout(5 * SECOND).expect("the connection stays open");
    assert!(total < 16 << 20, "{total} bytes were taken");
}

#[test]
fn tcp_is_a_connection() {
    let mut asker = Asker::new();
    let listener = TcpListener::bind("[::1]:0").unwrap();
    let probe = ProbeTarget::Tcp { address: listener.local_addr().unwrap() };
    assert_eq!(asker.ask(probe, SECOND).unwrap(), Answer::default());
    assert_eq!(listener.accept().unwrap().0.read(&mut [0; 8]).unwrap(), 0, "closed without a word");
}

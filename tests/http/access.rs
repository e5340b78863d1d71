//! Who may what: tokens and their roles, on each way in.

use std::time::Duration;

use bigbrother::http::{RIGHTS, Right};
use bigbrother::state::{Command, Role};
use tokio::net::{TcpStream, UnixStream};

use super::pretended::Asked;
use super::secured::{BOSS, LATE, OPERATOR, READER, Secured, token};
use super::server::{Answer, DEADLINE, Follower, exchange};

/// A path of the route.
pub fn path(right: &Right) -> String {
    let named = right.path.replace("{host}", "alpha").replace("{name}", "ci");
    match right.path {
        "/v1/directory/watch" => named + "?after=bad",
        _ => named.replace("{id}", "zone.0"),
    }
}

fn below(role: Role) -> Vec<(&'static str, Role)> {
    let all = [(READER, Role::Read), (OPERATOR, Role::Operate), (BOSS, Role::Admin)];
    all.into_iter().filter(|(_, has)| *has < role).collect()
}

fn challenge(answer: &Answer) -> &str {
    answer.header("www-authenticate")
}

#[tokio::test]
async fn over_tls_every_route_wants_a_token_with_its_role() {
    let mut secured = Secured::over_tls().await;
    for right in RIGHTS {
        let path = path(right);
        let seen = format!("{} {path}", right.method);
        if right.path == "/v1/healthz" {
            assert_eq!(secured.send(right.method, &path, None, "").await.status, 200);
            continue;
        }
        let answer = secured.send(right.method, &path, None, "").await;
        assert_eq!((answer.status, answer.problem().kind.as_str()), (401, "no-token"), "{seen}");
        assert_eq!(challenge(&answer), "Bearer realm=\"bigbrother\"");
        for (secret, has) in below(right.role) {
            let answer = secured.send(right.method, &path, Some(secret), "").await;
            let problem = answer.problem();
            assert_eq!((answer.status, problem.kind.as_str()), (403, "role"), "{seen}");
            let words = format!("the role {}; the one that was shown has {has}", right.role);
            assert!(problem.detail.contains(&words), "{seen}: {problem:?}");
            assert!(challenge(&answer).contains("insufficient_scope"), "{seen}");
        }
    }
    assert_eq!(secured.server.all_asked(), [], "nothing reaches the agent");
    for (secret, role) in [(READER, Role::Read), (OPERATOR, Role::Operate), (BOSS, Role::Admin)] {
        for right in RIGHTS.iter().filter(|right| right.role == role && right.method == "GET") {
            if right.path == "/v1/peers" {
                continue;
            }
            let answer = secured.send("GET", &path(right), Some(secret), "").await;
            assert!(![401, 403, 405].contains(&answer.status), "{right:?}: {}", answer.body);
        }
    }
    let stop = r#"{"target":{"instance":"zone.0"}}"#;
    assert_eq!(secured.send("POST", "/v1/stop", Some(OPERATOR), stop).await.status, 200);
    let toml = [("content-type", "application/toml"), ("authorization", "Bearer bb_boss")];
    let applied = secured.send_with("POST", "/v1/apply?expected_revision=4", &toml, "").await;
    assert_eq!(applied.status, 200, "{}", applied.body);
    let [Asked::Proposed(Command::Pause { .. }), Asked::Proposed(Command::ApplySpec { .. })] =
        &secured.server.asked()[..]
    else {
        panic!("each asks for what it may")
    };
}

#[tokio::test]
async fn a_token_that_does_not_hold_is_refused_and_nobody_learns_why() {
    let mut secured = Secured::over_tls().await;
    let mut told = Vec::new();
    for secret in ["bb_nobody", "reader", "", LATE] {
        let answer = secured.send("GET", "/v1/status", Some(secret), "").await;
        assert_eq!((answer.status, answer.problem().kind.as_str()), (401, "bad-token"), "{secret}");
        assert!(challenge(&answer).contains("error=\"invalid_token\""));
        told.push(answer.body);
    }
    for odd in
        [&["Basic cmVhZGVyOmJiX3JlYWRlcg=="][..], &["Bearer bb_reader", "Bearer bb_reader"], &["\u{e4}"]]
    {
        let headers: Vec<_> = odd.iter().map(|value| ("authorization", *value)).collect();
        let answer = secured.send_with("GET", "/v1/status", &headers, "").await;
        assert_eq!((answer.status, answer.problem().kind.as_str()), (401, "bad-token"), "{odd:?}");
        told.push(answer.body);
    }
    told.dedup();
    assert_eq!(told.len(), 1, "unknown, expired and odd ones are told the same");
    // Nor does anybody who may not look learn what there is.
    for path in ["/v1/instances/zone.0", "/v1/instances/nobody.0", "/v1/nothing"] {
        let answer = secured.send("GET", path, None, "").await;
        assert_eq!((answer.status, answer.problem().kind.as_str()), (401, "no-token"), "{path}");
    }
    assert_eq!(secured.server.all_asked(), []);
}

#[tokio::test]
async fn on_plain_loopback_everybody_looks_and_a_token_may_what_its_role_says() {
    let mut secured = Secured::on_loopback().await;
    let own = secured.server.tcp.to_string();
    for right in RIGHTS.iter().filter(|right| right.path != "/v1/peers") {
        let headers = [("host", own.as_str()), ("content-type", "application/json")];
        let answer = secured.send_with(right.method, &path(right), &headers, "").await;
        match right.role {
            Role::Read => assert!(![401, 403].contains(&answer.status), "{right:?}: {}", answer.body),
            _ => assert_eq!((answer.status, answer.problem().kind.as_str()), (401, "no-token"), "{right:?}"),
        }
    }
    assert_eq!(secured.server.asked(), []);
    let stop = r#"{"target":{"instance":"zone.0"}}"#;
    let with = |token: &'static str| [("host", own.clone()), ("authorization", format!("Bearer {token}"))];
    for (token, status) in [(READER, 403), (LATE, 401), (OPERATOR, 200)] {
        let given = with(token);
        let mut headers = vec![("content-type", "application/json")];
        headers.extend(given.iter().map(|(name, value)| (*name, value.as_str())));
        let answer = secured.send_with("POST", "/v1/stop", &headers, stop).await;
        assert_eq!(answer.status, status, "{token}: {}", answer.body);
    }
    assert_eq!(secured.server.asked().len(), 1);
    // A bad one is not passed over in favour of none.
    let given = with("bb_nobody");
    let headers: Vec<_> = given.iter().map(|(name, value)| (*name, value.as_str())).collect();
    assert_eq!(secured.send_with("GET", "/v1/status", &headers, "").await.status, 401);
}

#[tokio::test]
async fn the_unix_socket_is_guarded_by_its_mode_and_asks_for_no_token() {
    let secured = Secured::on_loopback().await;
    for bearer in [None, Some("Bearer bb_nobody")] {
        let mut headers = vec![("content-type", "application/json")];
        headers.extend(bearer.map(|bearer| ("authorization", bearer)));
        let stream = UnixStream::connect(secured.server.socket()).await.unwrap();
        let asked = exchange(stream, "POST", "/v1/stop", &headers, r#"{"target":"all"}"#).await;
        assert_eq!(asked.status(), 200);
    }
}

#[tokio::test]
async fn a_token_is_made_listed_and_revoked_by_the_state() {
    let mut secured = Secured::over_tls().await;
    let body = r#"{"name":"ci","role":"operate","expires_in_ms":60000}"#;
    let made = secured.send("POST", "/v1/tokens", Some(BOSS), body).await;
    assert_eq!((made.status, made.header("cache-control")), (201, "no-store"));
    let view = made.json();
    let secret = view["token"].as_str().unwrap();
    assert!(secret.starts_with("bb_") && secret.len() == 67, "{secret}");
    let [Asked::Proposed(Command::TokenCreate { name, role, hash, expires_ms })] =
        &secured.server.asked()[..]
    else {
        panic!("one token is proposed")
    };
    assert_eq!((name.as_str(), *role), ("ci", Role::Operate));
    assert_eq!(*hash, token(Role::Read, secret, None).hash, "only what it hashes to is kept");
    assert!(expires_ms.is_some());
    secured.change(|state| {
        state.api_tokens.insert("ci".parse().unwrap(), token(*role, secret, *expires_ms));
    });
    assert_eq!(secured.send("GET", "/v1/status", Some(secret), "").await.status, 200);
    let listed = secured.send("GET", "/v1/tokens", Some(BOSS), "").await.json();
    let names: Vec<_> =
        listed.as_array().unwrap().iter().map(|t| (t["name"].as_str(), t["expired"].as_bool())).collect();
    let shown = |name, expired| (Some(name), Some(expired));
    let all = [("boss", false), ("ci", false), ("late", true), ("operator", false), ("reader", false)];
    assert_eq!(names, all.map(|(name, expired)| shown(name, expired)));
    assert!(!listed.to_string().contains("hash"), "{listed}");
    assert_eq!(secured.send("DELETE", "/v1/tokens/ci", Some(BOSS), "").await.status, 200);
    let revoke = Asked::Proposed(Command::TokenRevoke { name: "ci".parse().unwrap() });
    assert_eq!(secured.server.asked(), [revoke]);
    secured.change(|state| {
        state.api_tokens.remove(&"ci".parse().unwrap());
    });
    assert_eq!(secured.send("GET", "/v1/status", Some(secret), "").await.status, 401);
    for (body, status) in [
        (r#"{"name":"ci","role":"root"}"#, 400),
        (r#"{"name":"CI","role":"read"}"#, 400),
        (r#"{"name":"ci"}"#, 400),
        (r#"{"name":"ci","role":"read","hash":"x"}"#, 400),
        (r#"{"name":"ci","role":"read","expires_in_ms":0}"#, 422),
        (r#"{"name":"ci","role":"read","expires_in_ms":18446744073709551615}"#, 422),
        (r#"{"name":"ci","role":"read","expires_in_ms":-1}"#, 400),
    ] {
        let answer = secured.send("POST", "/v1/tokens", Some(BOSS), body).await;
        assert_eq!(answer.status, status, "{body}: {}", answer.body);
        let told = answer.problem().detail;
        assert!(status != 422 || told.contains("leave out --expires"), "{told}");
    }
    assert_eq!(secured.server.asked(), []);
}

async fn follow(secured: &Secured, secret: &str) -> Follower {
    let bearer = format!("Bearer {secret}");
    let headers = [("authorization", bearer.as_str())];
    let response = exchange(secured.connect().await, "GET", "/v1/events?follow=true", &headers, "").await;
    assert_eq!(response.status(), 200);
    let mut follower = Follower { body: response.into_body(), seen: String::new() };
    follower.until("the past", |seen| seen.contains("\"seq\":3")).await;
    follower
}

async fn is_cut_off(mut follower: Follower) {
    use http_body_util::BodyExt;
    let cut = async { while let Some(Ok(_)) = follower.body.frame().await {} };
    tokio::time::timeout(DEADLINE, cut).await.expect("the stream ends");
}

#[tokio::test]
async fn what_a_token_follows_is_cut_off_when_it_is_revoked_or_expires() {
    let secured = Secured::over_tls().await;
    let soon = u64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap() + 1_500;
    secured.change(|state| {
        state.api_tokens.insert("soon".parse().unwrap(), token(Role::Read, "bb_soon", Some(soon)));
    });
    let (expiring, revoked, staying) =
        (follow(&secured, "bb_soon").await, follow(&secured, READER).await, follow(&secured, OPERATOR).await);
    // Another one of the same name is another one.
    secured.change(|state| {
        state.api_tokens.insert("reader".parse().unwrap(), token(Role::Read, "bb_another", None));
    });
    is_cut_off(revoked).await;
    is_cut_off(expiring).await;
    let staying = tokio::time::timeout(Duration::from_millis(300), is_cut_off(staying)).await;
    assert!(staying.is_err(), "others go on");
}

#[tokio::test]
async fn over_tls_nothing_is_said_in_the_clear_and_to_nobody_who_trusts_another_ca() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let secured = Secured::over_tls().await;
    let mut plain = TcpStream::connect(secured.server.tcp).await.unwrap();
    plain.write_all(b"GET /v1/healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut heard = Vec::new();
    let _ = tokio::time::timeout(DEADLINE, plain.read_to_end(&mut heard)).await.expect("it hangs up");
    assert!(!String::from_utf8_lossy(&heard).contains("HTTP"), "{heard:?}");

    let other = tempfile::tempdir().unwrap();
    bigbrother::cluster::tls::issue::init(other.path(), "pirates").unwrap();
    let socket = TcpStream::connect(secured.server.tcp).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("127.0.0.1").unwrap();
    let error = super::secured::connector(other.path()).connect(name, socket).await.unwrap_err().to_string();
    assert!(error.contains("UnknownIssuer") || error.contains("BadSignature"), "{error}");
}

/// A certificate of the folder's CA for the API, valid in these years only.
fn valid_in(folder: &std::path::Path, years: (i32, i32)) {
    use rcgen::{CertificateParams, Issuer, KeyPair, date_time_ymd};
    let read = |file: &str| std::fs::read_to_string(folder.join(file)).unwrap();
    let key = KeyPair::from_pem(&read("ca.key")).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&read("ca.pem"), key).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    (params.not_before, params.not_after) = (date_time_ymd(years.0, 1, 1), date_time_ymd(years.1, 1, 1));
    std::fs::write(folder.join("alpha-api.pem"), params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
    std::fs::write(folder.join("alpha-api.key"), key.serialize_pem()).unwrap();
}

#[tokio::test]
async fn the_command_line_sends_its_token_to_nobody_whose_certificate_does_not_hold() {
    use bigbrother::cli::api::{Access, Api, ApiError};
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for folder in [dir.path(), other.path()] {
        bigbrother::cluster::tls::issue::init(folder, "pirates").unwrap();
    }
    let file = other.path().join("token");
    std::fs::write(&file, READER).unwrap();
    let (own, foreign) = (dir.path().join("ca.pem"), other.path().join("ca.pem"));
    for (years, name, ca, trusted) in [
        ((2019, 2020), "127.0.0.1", own.clone(), false),
        ((4000, 4090), "127.0.0.1", own.clone(), false),
        ((2019, 4090), "localhost", own.clone(), false),
        ((2019, 4090), "127.0.0.1", foreign, false),
        ((2019, 4090), "127.0.0.1", own, true),
    ] {
        let served = tempfile::tempdir().unwrap();
        for file in ["ca.pem", "ca.key"] {
            std::fs::copy(dir.path().join(file), served.path().join(file)).unwrap();
        }
        valid_in(served.path(), years);
        let secured = Secured::start(served, true).await;
        let address = format!("https://{name}:{}", secured.server.tcp.port());
        let api = Api::new(address.parse().unwrap()).with(Access::gather(Some(&file), Some(ca)).unwrap());
        let answer = api.get::<serde_json::Value>("/v1/status").await;
        match trusted {
            true => assert_eq!(answer.unwrap()["host"], "alpha"),
            false => {
                assert!(matches!(answer, Err(ApiError::Untrusted { .. })), "{years:?} {name}: {answer:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_certificate_that_was_read_again_is_shown_from_then_on() {
    let secured = Secured::over_tls().await;
    let certificate = async || {
        let stream = secured.connect().await;
        stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
    };
    let (first, shown) = (certificate().await, secured.server.shown.clone().unwrap());
    let mut staying = follow(&secured, READER).await;
    std::fs::write(secured.server.dir.path().join("alpha-api.key"), "nothing").unwrap();
    assert!(shown.read_again().is_err());
    for years in [(2019, 2020), (4000, 4090)] {
        valid_in(secured.server.dir.path(), years);
        let said = shown.read_again().map(drop).unwrap_err().to_string();
        assert!(said.contains("alpha-api.pem") && said.contains(&years.1.to_string()), "{said}");
    }
    assert_eq!(certificate().await, first, "what cannot be used changes nothing");
    valid_in(secured.server.dir.path(), (2019, 4090));
    assert!(shown.renew(shown.read_again().unwrap()));
    assert_ne!(certificate().await, first);
    assert!(!shown.renew(shown.read_again().unwrap()), "the same again");
    assert_eq!(secured.send("GET", "/v1/status", Some(READER), "").await.status, 200);
    secured.server.events.send(super::pretended::event(4, "zone.0").into()).unwrap();
    staying.until("who is there goes on", |seen| seen.contains("\"seq\":4")).await;
}

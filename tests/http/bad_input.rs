//! Every route with what it does not take: methods, types, sizes, encodings, names. Each is refused with the right
//! words, and nothing reaches the agent.

use bigbrother::http::RIGHTS;
use tokio::net::UnixStream;

use super::access::path;
use super::secured::{BOSS, Secured};
use super::server::{Answer, Server, exchange};

const JSON: &str = "application/json";
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"];

/// Routes that take no body.
const WITHOUT_BODY: [&str; 6] = [
    "/v1/reload",
    "/v1/hosts/{host}/strike",
    "/v1/hosts/{host}/drain",
    "/v1/hosts/{host}/undrain",
    "/v1/hosts/{host}/declare-down",
    "/v1/tokens/{name}",
];

async fn ask(server: &Server, method: &str, path: &str, kind: &str, body: &str) -> Answer {
    let headers = [("content-type", kind)];
    let headers = if kind.is_empty() { &headers[..0] } else { &headers[..] };
    Answer::read(server.send(method, path, headers, body).await).await
}

/// Routes that read a body, with its type.
fn with_body() -> impl Iterator<Item = (String, &'static str)> {
    let changes = RIGHTS.iter().filter(|right| right.method == "POST" && !WITHOUT_BODY.contains(&right.path));
    changes.map(|right| (path(right), if right.path == "/v1/apply" { "application/toml" } else { JSON }))
}

#[tokio::test]
async fn a_method_that_a_route_does_not_take_is_refused_with_those_that_it_takes() {
    let mut server = Server::start().await;
    for right in RIGHTS {
        let takes = |method: &str| {
            let method = if method == "HEAD" { "GET" } else { method };
            RIGHTS.iter().any(|other| other.path == right.path && other.method == method)
        };
        for method in METHODS.into_iter().filter(|method| !takes(method)) {
            let answer = ask(&server, method, &path(right), JSON, "{}").await;
            let seen = format!("{method} {}: {} {}", right.path, answer.status, answer.body);
            assert_eq!(answer.status, 405, "{seen}");
            assert!(answer.header("allow").split(',').any(|method| method == right.method), "{seen}");
            assert!(!answer.header("allow").contains(method), "{seen}");
            if method != "HEAD" {
                assert_eq!(answer.problem().kind, "method-not-allowed", "{seen}");
            }
        }
    }
    assert_eq!(server.all_asked(), []);
}

#[tokio::test]
async fn a_body_of_another_type_shape_encoding_or_size_is_refused() {
    let mut server = Server::start().await;
    let (deep, large) = ("[".repeat(100_000), "x".repeat((1 << 20) + 1));
    for (path, kind) in with_body() {
        let toml = kind != JSON;
        for (given, body, statuses) in [
            ("", "{}", &[415][..]),
            ("text/html", "{}", &[415]),
            ("application/json; charset=", "", &[400, 415]),
            (kind, "", if toml { &[200] } else { &[400] }),
            (kind, "{", if toml { &[422] } else { &[400] }),
            (kind, "null", if toml { &[422] } else { &[400] }),
            (kind, "[]", if toml { &[422, 400] } else { &[400] }),
            (kind, r#"{"target":7,"process":[],"host":{}}"#, if toml { &[422] } else { &[400] }),
            (kind, r#"{"no":"such","field":true}"#, if toml { &[422] } else { &[400] }),
            (kind, &deep, if toml { &[422] } else { &[400] }),
            (kind, &large, &[413]),
        ] {
            let path = if toml { format!("{path}?dry_run=true") } else { path.clone() };
            let answer = ask(&server, "POST", &path, given, body).await;
            let shown: String = body.chars().take(30).collect();
            let seen = format!("{path} {given} {shown}: {} {}", answer.status, answer.body);
            assert!(statuses.contains(&answer.status), "{seen}");
            if answer.status != 200 {
                let problem = answer.problem();
                assert!(problem.detail.len() < 20_000, "{seen}");
            }
        }
        // Bytes that are no text.
        for body in [&b"\xff\xfe\x00{"[..], b"{\"target\":\"\xc3\x28\"}", b"\0\0\0\0"] {
            let answer = raw(&server, &path, kind, body).await;
            assert!(
                [400, 422].contains(&answer.status),
                "{path} {body:?}: {} {}",
                answer.status,
                answer.body
            );
            answer.problem();
        }
    }
    assert_eq!(server.asked(), [], "nothing was changed");
}

async fn raw(server: &Server, path: &str, kind: &str, body: &[u8]) -> Answer {
    use http_body_util::Full;
    use hyper_util::rt::TokioIo;
    let stream = UnixStream::connect(server.socket()).await.unwrap();
    let (mut asking, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = hyper::Request::post(path).header("host", "x").header("content-type", kind);
    let body = Full::new(hyper::body::Bytes::copy_from_slice(body));
    Answer::read(asking.send_request(request.body(body).unwrap()).await.unwrap()).await
}

#[tokio::test]
async fn a_name_in_a_path_or_a_query_that_is_none_is_refused() {
    let mut server = Server::start().await;
    let long = "x".repeat(5_000);
    let odd = [
        "..",
        "%2e%2e%2fetc%2fpasswd",
        "%00",
        "%ff%fe",
        "Zone.0",
        "zone.-1",
        "zone.99999999999999999999",
        &long,
    ];
    for right in RIGHTS.iter().filter(|right| right.path.contains('{')) {
        for name in odd {
            let path = right.path.replace("{id}", name).replace("{host}", name).replace("{name}", name);
            let answer = ask(&server, right.method, &path, JSON, "{}").await;
            let seen = format!("{} {path}: {} {}", right.method, answer.status, answer.body);
            assert!([400, 404].contains(&answer.status), "{seen}");
            answer.problem();
        }
    }
    for right in RIGHTS.iter().filter(|right| right.method == "GET") {
        let path = right.path.replace("{id}", "zone.0").replace("{host}", "alpha");
        for query in
            ["host=..%2f", "limit=-1", "follow=7", "since=%00", "after=%ff", "index=x&wait=1s", "lines=1e9"]
        {
            let answer = ask(&server, "GET", &format!("{path}?{query}"), "", "").await;
            let seen = format!("{path}?{query}: {} {}", answer.status, answer.body);
            // A route that reads no query passes it over.
            assert!([200, 400, 404, 409].contains(&answer.status), "{seen}");
            if answer.status != 200 {
                answer.problem();
            }
        }
    }
    assert_eq!(server.asked(), []);
}

#[tokio::test]
async fn a_head_that_is_too_large_or_has_too_many_headers_is_refused() {
    let server = Server::start().await;
    let value = "x".repeat(100_000);
    let many: Vec<(String, String)> = (0..200).map(|n| (format!("x-{n}"), "y".to_owned())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    for headers in [&[("x-large", value.as_str())][..], &many] {
        let stream = UnixStream::connect(server.socket()).await.unwrap();
        let answer = exchange(stream, "GET", "/v1/healthz", headers, "").await;
        assert_eq!(answer.status(), 431, "to {} headers", headers.len());
    }
    assert_eq!(server.get("/v1/healthz").await.status, 200);
}

#[tokio::test]
async fn a_key_that_was_used_is_refused_for_another_body_and_what_is_no_key_always() {
    let secured = Secured::over_tls().await;
    let send = async |path: &str, key: &str, body: &str| {
        let bearer = format!("Bearer {BOSS}");
        let headers = [("content-type", JSON), ("authorization", bearer.as_str()), ("idempotency-key", key)];
        secured.send_with("POST", path, &headers, body).await
    };
    let zone = r#"{"target":{"process":"zone"}}"#;
    assert_eq!(send("/v1/restart", "k", zone).await.status, 200);
    assert_eq!(send("/v1/restart", "k", zone).await.status, 200);
    for other in [r#"{"target":"all"}"#, r#"{"target":{"process":"zone"},"rolling":true}"#] {
        let answer = send("/v1/restart", "k", other).await;
        assert_eq!((answer.status, answer.problem().kind.as_str()), (422, "key-reused"), "{other}");
    }
    for key in ["", &"k".repeat(129), "k\u{e4}"] {
        for path in ["/v1/restart", "/v1/launch"] {
            let body = if path == "/v1/launch" { r#"{"process":"dungeon"}"# } else { zone };
            let answer = send(path, key, body).await;
            assert_eq!((answer.status, answer.problem().kind.as_str()), (400, "bad-key"), "{path} {key:?}");
        }
    }
}

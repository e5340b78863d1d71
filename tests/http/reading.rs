//! What can be read of a host.

use std::collections::BTreeMap;

use bigbrother::http::view::{EventView, InstanceView, StatusView};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::pretended::{instance, own_pid, two_zones};
use super::server::{Answer, DEADLINE, Server};

#[tokio::test]
async fn the_host_can_be_read() {
    let server = Server::start().await;
    let health = serde_json::json!({ "ok": true, "version": env!("CARGO_PKG_VERSION") });
    assert_eq!(server.get("/v1/healthz").await.json(), health);

    let status: StatusView = serde_json::from_value(server.get("/v1/status").await.json()).unwrap();
    assert_eq!((status.cluster.as_str(), status.host.as_str()), ("pirates", "alpha"));
    assert_eq!((status.index, status.revision, status.quorum), (17, 4, true));
    assert_eq!(status.instances, BTreeMap::from([("backoff".to_owned(), 1), ("ready".to_owned(), 2)]));
    assert_eq!(status.keeper.unwrap().pid, own_pid());

    let names = |answer: Answer| {
        let all: Vec<InstanceView> = serde_json::from_value(answer.json()).unwrap();
        all.iter().map(|i| i.instance.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names(server.get("/v1/instances").await), ["login.alpha", "zone.0", "zone.1"]);
    assert_eq!(names(server.get("/v1/instances?process=zone").await), ["zone.0", "zone.1"]);
    assert_eq!(names(server.get("/v1/instances?instance=zone.1").await), ["zone.1"]);
    // On demand, and none was launched.
    assert_eq!(names(server.get("/v1/instances?process=dungeon").await), [""; 0]);

    let one: InstanceView = serde_json::from_value(server.get("/v1/instances/zone.0").await.json()).unwrap();
    assert_eq!(one, instance("zone.0", "ready", Some(own_pid())));

    let spec = server.get("/v1/spec").await.json();
    assert_eq!(spec["revision"], 4);
    assert_eq!(spec["spec"]["processes"]["zone"]["command"][0], "/bin/true");

    let report = server.get("/v1/instances/zone.1/hang-report").await;
    assert_eq!((report.status, report.body.as_str()), (200, "wchan: futex_wait\n"));

    let seqs = |answer: Answer| {
        let all: Vec<EventView> = serde_json::from_value(answer.json()).unwrap();
        all.iter().map(|e| e.seq).collect::<Vec<_>>()
    };
    assert_eq!(seqs(server.get("/v1/events").await), [1, 2, 3]);
    assert_eq!(seqs(server.get("/v1/events?instance=zone.1").await), [2]);
}

#[tokio::test]
async fn requests_that_come_together_share_snapshots() {
    let mut server = Server::start().await;
    server.snapshot.send_replace(None);
    let mut streams = Vec::new();
    for _ in 0..50 {
        let mut stream = UnixStream::connect(server.socket()).await.unwrap();
        stream
            .write_all(b"GET /v1/instances HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .await
            .unwrap();
        streams.push(stream);
    }
    // One thread, and first come, first served: when this is answered, the fifty are waiting.
    assert_eq!(server.get("/v1/healthz").await.status, 200);
    server.snapshot.send_replace(Some(two_zones()));
    for mut stream in streams {
        let mut answer = String::new();
        tokio::time::timeout(DEADLINE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    // The first request's, and one for all that came meanwhile.
    let asked = server.all_asked().len();
    assert!(asked <= 2, "{asked} snapshots for 50 requests at once");
}

//! Events and logs as they come.

use std::path::Path;
use std::time::{Duration, Instant};

use bigbrother::http::view::EventView;

use super::pretended::event;
use super::server::{DEADLINE, Server};

fn data_lines(seen: &str) -> Vec<u64> {
    let events = seen.lines().filter_map(|line| line.strip_prefix("data: "));
    events.filter_map(|json| serde_json::from_str::<EventView>(json).ok()).map(|event| event.seq).collect()
}

#[tokio::test]
async fn events_are_followed_without_gap_or_double() {
    let server = Server::start().await;
    let mut all = server.follow("/v1/events?follow=true").await;
    let mut one = server.follow("/v1/events?follow=true&instance=zone.1").await;
    all.until("the recent events", |seen| data_lines(seen) == [1, 2, 3]).await;
    // The third again, as if it had happened between subscribing and asking.
    for event in [event(3, "zone.0"), event(4, "zone.0"), event(5, "zone.1")] {
        server.events.send(event.into()).unwrap();
    }
    all.until("the live events", |seen| data_lines(seen) == [1, 2, 3, 4, 5]).await;
    one.until("the events of one", |seen| data_lines(seen) == [2, 5]).await;

    // The ring holds four, and nobody gets to read while a hundred come.
    for seq in 6..106 {
        server.events.send(event(seq, "zone.0").into()).unwrap();
    }
    all.until("the newest", |seen| data_lines(seen).last() == Some(&105)).await;
    assert!(all.seen.contains("event: reset\ndata: {\"missed\":96}\n"), "{}", all.seen);

    server.shutdown.send(true).unwrap();
    all.end().await;
    one.end().await;
    server.served.await.unwrap().unwrap();
    assert!(!Path::new(&server.dir.path().join("api.sock")).exists(), "the socket's file is removed");
    server.agent.abort();
}

#[tokio::test]
async fn followers_are_bounded_and_give_their_place_back() {
    let server = Server::start().await;
    let mut followers = Vec::new();
    for _ in 0..64 {
        followers.push(server.follow("/v1/events?follow=true").await);
    }
    let answer = server.get("/v1/events?follow=true").await;
    assert_eq!((answer.status, answer.problem().kind.as_str()), (503, "busy"));
    followers.pop();
    let deadline = Instant::now() + DEADLINE;
    loop {
        let status = server.send("GET", "/v1/events?follow=true", &[], "").await.status();
        if status == 200 {
            break;
        }
        assert!(Instant::now() < deadline, "no place was given back, still {status}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn logs_are_read_and_followed_across_rotation() {
    let server = Server::start().await;
    let folder = server.dir.path().join("logs/zone.0");
    // Known, but it never wrote.
    let answer = server.get("/v1/instances/zone.0/logs").await;
    assert_eq!((answer.status, answer.body.as_str()), (200, ""));

    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("stdout.log.1"), "one\ntwo\n").unwrap();
    std::fs::write(folder.join("stdout.log"), "three\n").unwrap();
    std::fs::write(folder.join("stderr.log"), "wrong\n").unwrap();
    let answer = server.get("/v1/instances/zone.0/logs?lines=2").await;
    assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");
    assert_eq!(answer.body, "two\nthree\n");
    assert_eq!(server.get("/v1/instances/zone.0/logs?stream=stderr").await.body, "wrong\n");

    let mut follower = server.follow("/v1/instances/zone.0/logs?follow=true&lines=1").await;
    follower.until("the last line", |seen| seen == "three\n").await;
    std::fs::rename(folder.join("stdout.log"), folder.join("stdout.log.1")).unwrap();
    std::fs::write(folder.join("stdout.log"), "four\n").unwrap();
    follower.until("the line after the rotation", |seen| seen == "three\nfour\n").await;
    server.shutdown.send(true).unwrap();
    follower.end().await;
    server.served.await.unwrap().unwrap();
}

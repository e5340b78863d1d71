//! What runs say about themselves, as tools read and watch it.

use std::time::{Duration, Instant};

use bigbrother::cluster::statuses::Statuses;
use bigbrother::cluster::wire::encode;
use bigbrother::keeper::protocol::RunId;
use bigbrother::status::{Delta, Fact, Place, Summary, Told};
use serde_json::{Value, json};

use super::server::{Answer, Server};
use super::watching::{Site, events};

fn players(players: u32) -> Summary {
    Summary { players: Some(players), capacity: Some(64), ..Summary::default() }
}

fn says(statuses: &Statuses, instance: &str, run: u64, summary: Summary) {
    statuses.note([(instance.parse().unwrap(), RunId(run), Some(summary))]);
}

/// What a run of beta said that long ago.
fn beta_says(statuses: &Statuses, instance: &str, run: u64, summary: Summary, age_ms: u64) {
    let told = Told {
        instance: instance.parse().unwrap(),
        run: RunId(run),
        seq: 1,
        age_ms,
        summary: Some(summary.into()),
    };
    let delta = Delta {
        host: "beta".parse().unwrap(),
        to: Place { life: 1, seq: 1 },
        from: None,
        age_ms: 0,
        lines: vec![told],
    };
    let place = statuses.hear_host(&"beta".parse().unwrap(), &encode(&delta).unwrap()).unwrap();
    assert_eq!(place, encode(&Some(delta.to)).unwrap());
    let other = statuses.hear_host(&"gamma".parse().unwrap(), &encode(&delta).unwrap());
    assert!(other.unwrap_err().to_string().contains("gamma tells the status of beta"));
}

/// The statuses of the list, by instance.
fn statuses(answer: &Answer) -> Vec<(String, Value)> {
    let list = answer.json();
    let entry = |entry: &Value| (entry["instance"].as_str().unwrap().to_owned(), entry["status"].clone());
    list.as_array().unwrap().iter().map(entry).collect()
}

#[tokio::test]
async fn what_runs_say_is_read_with_its_age_when_it_is_asked_for() {
    let server = Server::start().await;
    let labels =
        [("mode".to_owned(), Fact::Text("ctf".into())), ("ranked".to_owned(), Fact::Flag(true))].into();
    says(
        &server.statuses,
        "zone.0",
        7,
        Summary { fps: Some(59.5), ping_ms: Some(40.0), labels, ..players(12) },
    );
    says(&server.statuses, "zone.2", 1, players(99));
    beta_says(&server.statuses, "login.beta", 9, players(5), 4_000);

    let plain = server.get("/v1/directory").await;
    assert!(plain.json()[1].get("status").is_none() && plain.header("etag") == "\"0.17\"", "{}", plain.body);
    let answer = server.get("/v1/directory?status=true").await;
    assert_eq!(answer.header("etag"), "", "ages are never the same");
    let all = statuses(&answer);
    let instances: Vec<&str> = all.iter().map(|(instance, _)| instance.as_str()).collect();
    assert_eq!(instances, ["login.beta", "zone.0", "zone.1", "zone.2"]);
    assert_eq!((&all[2].1, &all[3].1), (&Value::Null, &Value::Null), "nothing said, and an older run's word");
    assert_eq!((&all[0].1["players"], &all[0].1["fps"]), (&json!(5), &Value::Null));
    let age = |status: &Value| status["age_ms"].as_u64().unwrap();
    assert!((4_000..14_000).contains(&age(&all[0].1)) && age(&all[1].1) < 10_000, "{all:?}");
    let mut first = all[1].1.clone();
    first.as_object_mut().unwrap().remove("age_ms");
    let wanted = json!({
        "players": 12, "capacity": 64, "fps": 59.5, "ping_ms": 40.0, "map": null, "text": null,
        "labels": { "mode": "ctf", "ranked": true },
    });
    assert_eq!(first, wanted);

    let one = server.get("/v1/directory/zone.0?status=true").await.json();
    assert_eq!(one["status"]["players"], 12);
    assert!(server.get("/v1/directory/zone.0").await.json().get("status").is_none());
    let narrow = server.get("/v1/directory?fields=instance,status&process=zone&limit=1").await.json();
    assert_eq!((narrow[0].as_object().unwrap().len(), &narrow[0]["status"]["players"]), (2, &json!(12)));
    assert_eq!(server.get("/v1/directory/zone/leader?status=true").await.json()["status"], Value::Null);
    says(&server.statuses, "zone.2", 2, players(1));
    assert_eq!(server.get("/v1/directory/zone/leader?status=true").await.json()["status"]["players"], 1);
}

#[tokio::test]
async fn runs_are_found_by_labels_of_their_own_and_of_their_process() {
    let server = Server::start().await;
    let labels = |mode: &str| [("mode".to_owned(), Fact::Text(mode.into()))].into();
    says(&server.statuses, "zone.0", 7, Summary { labels: labels("ctf"), ..Summary::default() });
    let found = async |label: &str| server.get(&format!("/v1/directory?label={label}&fields=instance")).await;
    assert_eq!(found("mode=ctf").await.json(), json!([{ "instance": "zone.0" }]));
    assert_eq!(found("role=door").await.json(), json!([{ "instance": "login.beta" }]));
    assert_eq!(found("mode=dm").await.json(), json!([]));
    // The same state, and another answer.
    let before = found("mode=dm").await.header("etag").to_owned();
    assert_eq!(found("mode=dm").await.header("etag"), before);
    says(&server.statuses, "zone.0", 7, Summary { labels: labels("dm"), ..Summary::default() });
    let after = found("mode=dm").await;
    assert_eq!(after.json(), json!([{ "instance": "zone.0" }]));
    assert_ne!(after.header("etag"), before);
}

#[tokio::test]
async fn a_tag_means_the_same_answer_on_every_host() {
    let (one, other) = (Server::start().await, Server::start().await);
    let found = async |server: &Server| server.get("/v1/directory?label=mode=dm").await;
    for (server, mode) in [(&one, "ctf"), (&other, "dm")] {
        let labels = [("mode".to_owned(), Fact::Text(mode.into()))].into();
        says(&server.statuses, "zone.0", 7, Summary { labels, ..Summary::default() });
    }
    let (none, some) = (found(&one).await, found(&other).await);
    assert_eq!((none.json().as_array().unwrap().len(), some.json().as_array().unwrap().len()), (0, 1));
    assert_ne!(none.header("etag"), some.header("etag"), "two answers, one tag");
    let labels = [("mode".to_owned(), Fact::Text("dm".into()))].into();
    says(&one.statuses, "zone.0", 7, Summary { labels, ..Summary::default() });
    assert_eq!(found(&one).await.header("etag"), some.header("etag"), "one answer, two tags");
}

#[tokio::test]
async fn a_watcher_is_told_at_most_once_a_second_what_a_run_says() {
    let mut site = Site::start(7).await;
    for (number, instance) in ["zone.0", "zone.1", "login.0"].into_iter().enumerate() {
        site.source.starts(instance, number as u64 + 1);
    }
    says(&site.source.statuses, "zone.0", 1, players(3));
    says(&site.source.statuses, "login.0", 3, players(4));
    let mut watcher = site.watch("?status=true&process=zone", None).await;
    let of_status = |seen: &str| -> Vec<(String, Value)> {
        let all = events(seen).into_iter().filter(|(kind, ..)| kind == "status");
        all.map(|(_, id, data)| (id, data)).collect()
    };
    watcher.until("what is known", |seen| of_status(seen).len() == 1).await;
    assert_eq!(events(&watcher.seen)[0].0, "snapshot", "first of all");
    let (id, first) = of_status(&watcher.seen).remove(0);
    let entry = &first[0];
    assert_eq!((id.as_str(), first.as_array().unwrap().len()), ("", 1), "no id, and nothing of login");
    let seen = [&entry["instance"], &entry["host"], &entry["run"], &entry["status"]["players"]];
    assert_eq!(seen, [&json!("zone.0"), &json!("alpha"), &json!(1), &json!(3)]);
    assert!(entry["status"]["age_ms"].is_u64());

    let began = Instant::now();
    for players_now in 10..20 {
        says(&site.source.statuses, "zone.0", 1, players(players_now));
        // The changes do not wait for it.
        site.source.starts("zone.2", u64::from(players_now));
        let last = format!("\"run\":{players_now}");
        watcher.until("the change", |seen| seen.contains(&last)).await;
    }
    says(&site.source.statuses, "zone.1", 2, players(6));
    watcher
        .until("the newest", |seen| of_status(seen).iter().any(|(_, all)| all[0]["status"]["players"] == 19))
        .await;
    let told = of_status(&watcher.seen);
    // Once a second: as many as seconds have passed.
    let most = 2 + began.elapsed().as_secs() as usize;
    assert!(told.len() <= most, "{} in {:?}", told.len(), began.elapsed());
    watcher.until("the other one", |seen| seen.contains("\"players\":6,")).await;
    assert!(began.elapsed() > Duration::from_millis(500), "{:?}", began.elapsed());
    let mut plain = site.watch("", None).await;
    site.source.starts("zone.3", 77);
    plain.until("the change", |seen| seen.contains("\"run\":77")).await;
    assert!(of_status(&plain.seen).is_empty(), "it did not ask for it");
}

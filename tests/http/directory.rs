//! What tools and processes find in the directory.

use serde_json::{Value, json};

use super::server::{Answer, Server};

fn names(answer: &Answer) -> Vec<String> {
    let list = answer.json();
    list.as_array().unwrap().iter().map(|entry| entry["instance"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn the_directory_is_narrowed_projected_and_paged() {
    let server = Server::start().await;
    let all = server.get("/v1/directory").await;
    assert_eq!(names(&all), ["login.beta", "zone.0", "zone.1", "zone.2"]);
    assert_eq!((all.header("bigbrother-index"), all.header("etag")), ("17", "\"17\""));
    for (query, wanted) in [
        ("process=zone", &["zone.0", "zone.1", "zone.2"][..]),
        ("host=beta", &["login.beta", "zone.1"]),
        ("ready=true&process=zone", &["zone.0", "zone.2"]),
        ("ready=false", &["zone.1"]),
        ("label=role=door", &["login.beta"]),
        ("label=role=window", &[]),
        ("process=nobody", &[]),
    ] {
        assert_eq!(names(&server.get(&format!("/v1/directory?{query}")).await), wanted, "{query}");
    }
    let narrow = server.get("/v1/directory?fields=instance,run&process=login").await;
    assert_eq!(narrow.json(), json!([{ "instance": "login.beta", "run": 9 }]));
    let page = server.get("/v1/directory?limit=3").await;
    assert_eq!(names(&page), ["login.beta", "zone.0", "zone.1"]);
    assert_eq!(page.header("link"), "</v1/directory?after=zone.1>; rel=\"next\"");
    let last = server.get("/v1/directory?limit=3&after=zone.1").await;
    assert_eq!((names(&last), last.header("link")), (vec!["zone.2".to_owned()], ""));
}

#[tokio::test]
async fn one_run_the_leader_and_the_processes_are_found() {
    let server = Server::start().await;
    let one = server.get("/v1/directory/zone.1?consistent").await.json();
    assert_eq!(
        (&one["host"], &one["ports"]["game"]["port"], &one["ready"]),
        (&json!("beta"), &json!(7001), &json!(false))
    );
    let leader = server.get("/v1/directory/zone/leader").await.json();
    assert_eq!((&leader["instance"], &leader["token"]), (&json!("zone.2"), &json!(12)));
    for path in ["/v1/directory/zone.7", "/v1/directory/login/leader", "/v1/directory/nobody/leader"] {
        assert_eq!(server.get(path).await.problem().status, 404, "{path}");
    }
    let processes = server.get("/v1/processes").await.json();
    let zone = processes.as_array().unwrap().iter().find(|one| one["process"] == "zone").unwrap();
    let seen =
        ["population", "count", "running", "ready", "placed", "leader"].map(|field| zone[field].clone());
    assert_eq!(Value::from(seen.to_vec()), json!(["count", 2, 3, 2, 1, "zone.2"]));
}

#[tokio::test]
async fn who_has_seen_it_is_told_that_nothing_changed() {
    let server = Server::start().await;
    let ask = async |tag: &str| {
        Answer::read(server.send("GET", "/v1/directory", &[("if-none-match", tag)], "").await).await
    };
    let same = ask("\"16\", \"17\"").await;
    assert_eq!((same.status, same.body.as_str(), same.header("etag")), (304, "", "\"17\""));
    assert_eq!(ask("\"16\"").await.status, 200);
}

#[tokio::test]
async fn a_question_that_means_nothing_is_refused_with_the_reason() {
    let server = Server::start().await;
    for (query, word) in [
        ("label=door", "KEY=VALUE"),
        ("fields=instance,pid", "\"pid\""),
        ("hosts=beta", "hosts"),
        ("ready=perhaps", "ready"),
        ("after=zone", "after"),
        ("limit=-1", "limit"),
    ] {
        let problem = server.get(&format!("/v1/directory?{query}")).await.problem();
        assert_eq!(problem.status, 400, "{query}");
        assert!(problem.detail.contains(word), "{query}: {}", problem.detail);
    }
}

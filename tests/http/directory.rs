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
    assert_eq!((all.header("bigbrother-index"), all.header("etag")), ("17", "\"0.17\""));
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
    let narrow = server.get("/v1/directory?fields=instance,run,instance&process=login").await;
    assert_eq!(narrow.json(), json!([{ "instance": "login.beta", "run": 9 }]));
    let page = server.get("/v1/directory?limit=3").await;
    assert_eq!(names(&page), ["login.beta", "zone.0", "zone.1"]);
    assert_eq!(page.header("link"), "</v1/directory?limit=3&after=zone.1>; rel=\"next\"");
    let last = server.get("/v1/directory?limit=3&after=zone.1").await;
    assert_eq!((names(&last), last.header("link")), (vec!["zone.2".to_owned()], ""));
    // The next page is of the same question.
    let page = server.get("/v1/directory?process=zone&fields=instance&limit=1&after=zone.0").await;
    assert_eq!(names(&page), ["zone.1"]);
    let next = page.header("link").trim_start_matches('<').split('>').next().unwrap();
    assert_eq!(server.get(next).await.json(), json!([{ "instance": "zone.2" }]));
    assert_eq!(names(&server.get("/v1/directory?process=zone&after=login.beta").await).len(), 3);
    assert_eq!(names(&server.get("/v1/directory?process=login&after=zone.0").await).len(), 0);
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
    let unknown = server.get("/v1/directory/zoen/leader").await.problem();
    assert_eq!((unknown.kind.as_str(), unknown.status), ("no-process", 404));
    assert!(unknown.detail.contains("did you mean zone?"), "{unknown:?}");
    let unled = server.get("/v1/directory/login/leader").await.problem();
    assert!(unled.detail.contains("no run of login is ready"), "{unled:?}");
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
    let same = ask("\"0.16\", \"0.17\"").await;
    assert_eq!((same.status, same.body.as_str(), same.header("etag")), (304, "", "\"0.17\""));
    assert_eq!(same.header("bigbrother-index"), "17");
    assert_eq!(ask("\"0.16\"").await.status, 200);
}

#[tokio::test]
async fn every_list_is_narrowed_projected_paged_dated_and_tagged() {
    let server = Server::start().await;
    for (path, first, fields) in [
        ("/v1/directory", "login.beta", "instance"),
        ("/v1/processes", "dungeon", "process"),
        ("/v1/instances", "login.alpha", "instance"),
        ("/v1/hosts", "alpha", "host"),
    ] {
        let page = server.get(&format!("{path}?limit=1&fields={fields}")).await;
        assert_eq!(page.json(), json!([{ fields: first }]), "{path}");
        assert_eq!(page.header("bigbrother-index"), "17", "{path}");
        let next = page.header("link").trim_start_matches('<').split('>').next().unwrap();
        let next = server.get(next).await.json();
        assert!(next.as_array().unwrap().len() == 1 && next[0][fields] != first, "{path}: {next}");
        let tag = page.header("etag");
        let again = format!("{path}?limit=1&fields={fields}");
        let same = Answer::read(server.send("GET", &again, &[("if-none-match", tag)], "").await).await;
        assert_eq!((same.status, same.body.as_str()), (304, ""), "{path}: {tag}");
        let none = server.get(&format!("{path}?limit=0")).await.problem();
        assert_eq!(none.status, 400, "{path}");
        let unknown = server.get(&format!("{path}?fields=colour")).await.problem();
        assert!(unknown.detail.contains("colour") && unknown.detail.contains(fields), "{unknown:?}");
        assert_eq!(server.get(&format!("{path}?consistent")).await.status, 200, "{path}");
        assert_eq!(server.get(&format!("{path}?consistent=perhaps")).await.problem().status, 400, "{path}");
    }
    for path in ["/v1/status", "/v1/events", "/v1/spec", "/v1/healthz", "/v1/prometheus/targets"] {
        assert_eq!(server.get(path).await.header("bigbrother-index"), "17", "{path}");
    }
}

#[tokio::test]
async fn processes_hosts_and_instances_are_found_by_what_they_are() {
    let server = Server::start().await;
    let of = async |path: &str, field: &str| {
        let list = server.get(path).await.json();
        let rows = list.as_array().unwrap().iter();
        rows.map(|row| row[field].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    for (query, wanted) in [
        ("label=role=door", &["login"][..]),
        ("host=beta", &["login", "zone"]),
        ("ready=true&process=zone", &["zone"]),
        ("process=nobody", &[]),
        ("after=login", &["zone"]),
    ] {
        assert_eq!(of(&format!("/v1/processes?{query}"), "process").await, wanted, "{query}");
    }
    for (query, wanted) in [
        ("state=backoff", &["zone.1"][..]),
        ("ready=true", &["login.alpha", "zone.0"]),
        ("ready=false&process=zone", &["zone.1"]),
        ("label=role=door", &["login.alpha"]),
        ("after=login.alpha&limit=1", &["zone.0"]),
    ] {
        assert_eq!(of(&format!("/v1/instances?{query}"), "instance").await, wanted, "{query}");
    }
    for (query, wanted) in [
        ("state=up", &["alpha", "beta"][..]),
        ("state=down", &[]),
        ("host=beta", &["beta"]),
        ("after=alpha", &["beta"]),
    ] {
        assert_eq!(of(&format!("/v1/hosts?{query}"), "host").await, wanted, "{query}");
    }
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
        ("wait=soon", "30s"),
    ] {
        let problem = server.get(&format!("/v1/directory?{query}")).await.problem();
        assert_eq!(problem.status, 400, "{query}");
        assert!(problem.detail.contains(word), "{query}: {}", problem.detail);
    }
}

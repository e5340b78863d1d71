//! A program on a file server that does not answer. `stat` of it works, so everything up to the exec does; the exec
//! itself does not come back.

use serde_json::json;

use super::file_server::{FileServer, Silent};
use super::host::{Cgroups, Host, PATIENCE, expect, signal, until};

/// A host with one instance whose program lies there, and one beside it.
fn host_of(cgroups: Cgroups, silent: Silent) -> (Host, FileServer) {
    let host = Host::new(cgroups);
    let root = host.root.to_str().unwrap();
    let script = format!("#!/bin/sh\nexec /bin/sh {root}/witness {root} /bin/sleep 600\n");
    let server = FileServer::mount(&host.root.join("far"), &script, silent);
    host.write_config(&processes(&host, &server, 1));
    (host, server)
}

fn processes(host: &Host, server: &FileServer, near: u32) -> String {
    let (far, sleep) = (server.program(), host.witness(&["/bin/sleep", "600"]));
    format!(
        r#"
[process.far]
command = ["{far}"]
ready = {{ mode = "spawned", after = "10ms", timeout = "10m" }}
heartbeat = {{ mode = "none" }}
restart = {{ backoff = {{ min = "100ms", max = "200ms" }}, give_up = false }}
stop = {{ timeout = "200ms" }}

[process.near]
command = {sleep}
count = {near}
ready = {{ mode = "spawned", after = "10ms" }}
heartbeat = {{ mode = "none" }}
restart = {{ backoff = false, give_up = false }}
"#
    )
}

/// Status, events and metric say it.
fn told_as_stuck(host: &Host) {
    until("far.0 is told as stuck", || {
        let view = host.view("far.0")?;
        let reason = view.reason.clone().unwrap_or_default();
        expect(view.state == "starting" && reason.starts_with("spawn-stuck"), &view)
    });
}

/// The others start, end and start again as ever.
fn others_live(host: &Host, server: &FileServer) {
    for _ in 0..3 {
        let before = host.ready("near.0");
        signal(before.pid.unwrap(), libc::SIGKILL);
        until("near.0 is started again", || {
            let view = host.view("near.0")?;
            expect(view.state == "ready" && view.run != before.run, &view)
        });
    }
    host.write_config(&processes(host, server, 2));
    host.post("/v1/reload", &json!({})).unwrap();
    host.ready("near.1");
}

fn stop_far(host: &Host) {
    host.post("/v1/stop", &json!({ "target": { "instance": "far.0" } })).unwrap();
}

fn far_is(host: &Host, state: &str) {
    until(&format!("far.0 is {state}"), || {
        let view = host.view("far.0")?;
        expect(view.state == state, &view)
    });
}

fn stuck(cgroups: Cgroups, silent: Silent) -> (Host, FileServer) {
    let (mut host, server) = host_of(cgroups, silent);
    host.start();
    until("the exec waits for the server", || expect(server.owes() > 0, server.owes()));
    others_live(&host, &server);
    told_as_stuck(&host);
    assert!(host.events("far.0").iter().any(|event| event.kind == "spawn-stuck"));
    assert_eq!(host.metric("bigbrother_spawn_failures_total", "stuck"), Ok(1.0));
    assert_eq!(host.witnessed("far.0"), Vec::<i32>::new());
    (host, server)
}

/// One life of the program, and it is the one that is supervised.
fn comes_to_life(host: &Host, server: &FileServer) {
    server.answer();
    let view = host.ready("far.0");
    until("the witness of far.0", || {
        let last = host.witnessed("far.0").last().copied();
        expect(last == view.pid, (last, &view))
    });
    assert_eq!((host.witnessed("far.0").len(), view.reason.clone()), (1, None), "{view:?}");
}

#[test]
fn an_exec_that_never_comes_back_holds_up_nobody_and_goes_on_when_the_server_answers() {
    let (mut host, server) = stuck(Cgroups::Own, Silent::Reads);
    // Neither an agent that comes anew.
    host.stop_agent();
    host.start();
    told_as_stuck(&host);
    others_live(&host, &server);
    comes_to_life(&host, &server);
}

#[test]
fn the_same_without_cgroups_where_no_signal_reaches() {
    let (mut host, server) = stuck(Cgroups::None, Silent::ReadsDeaf);
    host.kill_agent();
    host.start();
    told_as_stuck(&host);
    others_live(&host, &server);
    comes_to_life(&host, &server);
}

#[test]
fn a_keeper_that_comes_anew_waits_for_it_as_the_one_before() {
    for answers in [true, false] {
        let (host, server) = stuck(Cgroups::Own, Silent::Reads);
        // Until its exec the child has the keeper's memory and so its command line: whoever kills by that kills both.
        let keeper = |host: &Host| Ok::<i32, String>(host.status()?.keeper.ok_or("none")?.pid);
        let (before, run) = (until("a keeper", || keeper(&host)), host.view("far.0").unwrap().run);
        signal(before, libc::SIGKILL);
        until("another keeper", || expect(keeper(&host)? != before, keeper(&host)));
        others_live(&host, &server);
        told_as_stuck(&host);
        assert_eq!(host.view("far.0").unwrap().run, run, "it is the child of before");
        if answers {
            comes_to_life(&host, &server);
        } else {
            let _dead = server.die();
            far_is(&host, "backoff");
            let told = host.events("far.0");
            assert!(told.iter().all(|event| event.kind != "started"), "it never started: {told:?}");
        }
    }
}

#[test]
fn a_stuck_exec_can_be_stopped_and_started() {
    let (host, server) = stuck(Cgroups::Own, Silent::Reads);
    stop_far(&host);
    far_is(&host, "paused");
    host.post("/v1/start", &json!({ "target": { "instance": "far.0" } })).unwrap();
    told_as_stuck(&host);
    comes_to_life(&host, &server);
}

#[test]
fn a_stop_of_an_exec_that_no_signal_reaches_ends_with_the_server() {
    let (host, server) = stuck(Cgroups::Own, Silent::ReadsDeaf);
    stop_far(&host);
    far_is(&host, "stopping");
    others_live(&host, &server);
    far_is(&host, "stopping");
    let _dead = server.die();
    far_is(&host, "paused");
    assert_eq!(host.witnessed("far.0"), Vec::<i32>::new());
}

#[test]
fn a_dead_server_makes_a_failed_spawn_of_a_stuck_one() {
    let (host, server) = stuck(Cgroups::Own, Silent::ReadsDeaf);
    let _dead = server.die();
    let failed = until("the spawn is told as failed", || {
        let events = host.events("far.0");
        let failed = events.iter().rfind(|event| event.kind == "spawn-failed");
        // The second try finds the server gone.
        let text = failed.map(|event| format!("{event:?}")).unwrap_or_default();
        expect(text.contains("endpoint is not connected") || text.contains("ENOTCONN"), &events)?;
        Ok(events)
    });
    assert!(failed.iter().any(|event| event.kind == "spawn-failed"), "within {PATIENCE:?}");
    far_is(&host, "backoff");
    others_live_on(&host);
}

fn others_live_on(host: &Host) {
    host.ready("near.0");
    host.ready("near.1");
}

/// Not the exec but what comes before it: a name that is looked up (by `host.policy`) hangs.
#[test]
fn a_name_that_cannot_be_looked_up_holds_up_nobody() {
    let (mut host, server) = host_of(Cgroups::Own, Silent::Names);
    let config = std::fs::read_to_string(host.config()).unwrap();
    let policy = format!("[host]\npolicy = {{ programs = [\"/bin\", \"/usr/bin\", {:?}] }}\n", host.root);
    std::fs::write(host.config(), config.replacen("[host]\n", &policy, 1)).unwrap();
    host.start();
    until("the look-up waits for the server", || expect(server.owes() > 0, server.owes()));
    let before = host.ready("near.0");
    signal(before.pid.unwrap(), libc::SIGKILL);
    until("near.0 is started again", || {
        let view = host.view("near.0")?;
        expect(view.state == "ready" && view.run != before.run, &view)
    });
    comes_to_life(&host, &server);
}

//! Far more instances than a host has room for.

use std::time::{Duration, Instant};

use bigbrother::http::view::InstanceView;
use serde_json::json;

use super::host::{Cgroups, Host, expect, signal, until};
use super::neighbours::{self, Neighbours};

/// How many are wanted; the host has some twenty ports.
const CROWD: u32 = 20_000;
/// What an answer may take on a busy machine.
const SOON: Duration = Duration::from_secs(15);

/// `/v1/status`, which must come soon whatever the agent has to do: so many instances, and so many that are ready.
fn counted(host: &Host) -> Result<(u64, u64), String> {
    let began = Instant::now();
    let status = host.status();
    let took = began.elapsed();
    assert!(took < SOON, "an answer took {took:?}: {status:?}");
    let instances = status?.instances;
    Ok((instances.values().sum(), instances.get("ready").copied().unwrap_or(0)))
}

#[test]
fn thousands_that_find_no_port_keep_nobody_from_the_agent() {
    let mut host = Host::new(Cgroups::None);
    let (neighbours, sleep) = (neighbours::toml(&host), host.witness(&["/bin/sleep", "1000"]));
    host.write_config(&format!(
        "{neighbours}\n[process.arena]\ncommand = {sleep}\ncount = 1\nports = {{ game = \"udp\" }}\n\
         ready = {{ mode = \"spawned\" }}\nheartbeat = {{ mode = \"none\" }}\n"
    ));
    host.start();
    host.ready("arena.0");
    let neighbours = Neighbours::of(&host);
    let (all, _) = counted(&host).unwrap();
    let scale =
        |count: Option<u32>| host.post("/v1/scale", &json!({ "process": "arena", "count": count })).unwrap();
    scale(Some(CROWD));
    // Who finds a port is started beside those who find none.
    let fit = u64::from(host.ports.1 - host.ports.0) + 1;
    until("all are looked at, and those that fit are ready", || {
        let (seen, ready) = counted(&host)?;
        expect(seen >= u64::from(CROWD) && ready >= fit, (seen, ready))
    });
    neighbours.noticed_nothing(&host);
    scale(None);
    until("the others are gone", || {
        let (seen, ready) = counted(&host)?;
        expect((seen, ready) == (all, all), (seen, ready))
    });
    host.ready("arena.0");
    neighbours.noticed_nothing(&host);
}

/// How long after its death a game with a witness runs again.
fn back_after_a_death(host: &Host, game: &str) -> Duration {
    let last = until("it runs", || host.witnessed(game).last().copied().ok_or("never".to_owned()));
    let killed = Instant::now();
    signal(last, libc::SIGKILL);
    until("it runs again", || {
        let runs = host.witnessed(game);
        expect(runs.last() != Some(&last), runs)
    });
    killed.elapsed()
}

#[test]
fn a_crowd_that_tries_again_and_again_holds_up_no_restart_of_others() {
    let mut host = Host::new(Cgroups::None);
    let sleep = host.witness(&["/bin/sleep", "1000"]);
    let rest = "ready = { mode = \"spawned\" }\nheartbeat = { mode = \"none\" }\n";
    // Who finds no port tries again every second, all of them for ever. A back-off is over in the midst of that.
    host.write_config(&format!(
        "[process.game]\ncommand = {sleep}\n{rest}\
         restart = {{ backoff = {{ min = \"10ms\", max = \"10ms\" }}, give_up = false }}\n\
         [process.arena]\ncommand = {sleep}\ncount = 0\nports = {{ game = \"udp\" }}\n{rest}\
         restart = {{ backoff = false, give_up = false }}\n"
    ));
    host.start();
    host.ready("game.0");
    let alone = (0..3).map(|_| back_after_a_death(&host, "game.0")).max().unwrap();
    host.post("/v1/scale", &json!({ "process": "arena", "count": CROWD })).unwrap();
    let refused = || host.metric("bigbrother_spawn_failures_total", "port");
    let tried = until("the crowd is at it", || {
        let refused = refused()?;
        expect(refused > f64::from(CROWD), refused)?;
        Ok(refused)
    });
    // While as many are refused again as there are.
    let mut deaths = Vec::new();
    until("the crowd goes round", || {
        deaths.push(back_after_a_death(&host, "game.0"));
        let refused = refused()?;
        expect(refused > tried + f64::from(CROWD) && deaths.len() > 10, (tried, refused, &deaths))
    });
    // A turn or two of the loop, however long the queue. The machine may be slow for once.
    deaths.sort();
    let (usual, soon) = (deaths[deaths.len() / 2], Duration::from_secs(2).max(20 * alone));
    assert!(usual < soon, "{usual:?} beside the crowd, {alone:?} alone: {deaths:?}");
}

#[test]
fn who_waits_for_a_turn_is_not_late() {
    let mut host = Host::new(Cgroups::None);
    let sleep = host.witness(&["/bin/sleep", "1000"]);
    // Whoever is ordered is refused at once: there is no port left.
    let ports = host.ports.1 - host.ports.0 + 1;
    host.write_config(&format!(
        "[process.holder]\ncommand = {sleep}\ncount = {ports}\nports = {{ game = \"udp\" }}\n\
         ready = {{ mode = \"spawned\" }}\nheartbeat = {{ mode = \"none\" }}\n\
         [process.arena]\ncommand = {sleep}\ncount = 0\nports = {{ game = \"udp\" }}\n\
         ready = {{ mode = \"spawned\", after = \"10ms\", timeout = \"50ms\" }}\nheartbeat = {{ mode = \"none\" }}\n\
         restart = {{ give_up = {{ failures = 1 }} }}\n"
    ));
    host.start();
    (0..ports).for_each(|n| drop(host.ready(&format!("holder.{n}"))));
    host.post("/v1/scale", &json!({ "process": "arena", "count": CROWD })).unwrap();
    let views = until("all have been looked at", || {
        let mut views = host.ps()?;
        views.retain(|name, _| name.starts_with("arena."));
        let looked = views.values().filter(|view| view.last_exit.is_some()).count();
        expect(looked == CROWD as usize, looked)?;
        Ok(views)
    });
    let why = |view: &InstanceView| view.last_exit.as_ref().and_then(|exit| exit.detail.clone());
    let late = views.values().find(|view| !why(view).is_some_and(|why| why.contains("no free udp port")));
    assert!(late.is_none(), "{late:?}");
}

#[test]
fn what_is_between_runs_stays_as_it_is_while_a_new_agent_hears_of_thousands() {
    let mut host = Host::new(Cgroups::None);
    let sleep = host.witness(&["/bin/sleep", "1000"]);
    let rest = "ready = { mode = \"spawned\" }\nheartbeat = { mode = \"none\" }\n";
    let backoff = "restart = { backoff = { min = \"10m\", max = \"10m\" } }\n";
    host.write_config(&format!(
        "[process.arena]\ncommand = {sleep}\ncount = 0\n{rest}\
         [process.first]\ncommand = {sleep}\ncount = 1\nports = {{ game = \"udp\" }}\n{rest}\
         [process.game]\ncommand = {sleep}\ncount = 1\nports = {{ game = \"udp\" }}\n{rest}{backoff}"
    ));
    host.start();
    let (first, game) = (host.ready("first.0"), host.ready("game.0"));
    // More than are taken in one go, all before the game, and a port that is free before its own.
    assert!(first.ports["game"].port < game.ports["game"].port, "{first:?} {game:?}");
    host.post("/v1/stop", &json!({ "target": { "process": "arena" } })).unwrap();
    host.post("/v1/scale", &json!({ "process": "arena", "count": 3_000 })).unwrap();
    host.post("/v1/scale", &json!({ "process": "first", "count": 0 })).unwrap();
    until("they are there, and stopped", || {
        let paused = host.ps()?.values().filter(|view| view.state == "paused").count();
        expect(paused == 3_000 && host.view("first.0").is_err(), paused)
    });
    until("it waits for its next run", || {
        let view = host.view("game.0")?;
        view.pid.into_iter().for_each(|pid| signal(pid, libc::SIGKILL));
        expect(view.state == "backoff", view)
    });
    host.kill_agent();
    host.start();
    assert_eq!(host.ready("game.0").ports, game.ports);
}

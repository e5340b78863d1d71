//! Far more instances than a host has room for.

use std::time::{Duration, Instant};

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
    // A turn or two of the loop, however long the queue.
    let soon = Duration::from_secs(2).max(20 * alone);
    for _ in 0..20 {
        let took = back_after_a_death(&host, "game.0");
        assert!(took < soon, "{took:?} beside the crowd, {alone:?} alone");
    }
    let now = refused().unwrap();
    assert!(now > tried + 1_000.0, "the crowd had nothing to do: {tried}, then {now}");
}

//! Far more instances than a host has room for.

use std::time::{Duration, Instant};

use serde_json::json;

use super::host::{Cgroups, Host, expect, until};
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

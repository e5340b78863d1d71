//! An agent ends or dies: the games stay, the next agent takes them over.

use std::fs;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use bigbrother::keeper::process::stat;
use bigbrother::keeper::protocol::SOCKET;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket as socket_of};
use serde_json::json;

use super::host::{Cgroups, Host, alive, expect, signal, until};

const ALL: [&str; 5] = ["beat.0", "mute.0", "nobody.0", "once.0", "zone.0"];
const BEATING: [&str; 3] = ["beat.0", "nobody.0", "zone.0"];

/// One process of each kind: by its own socket, by sd_notify, under another account, unwatched, and one
/// that never restarts.
fn household(host: &Host) {
    let (zone, beat) = (host.zone("{port.game}"), host.beater());
    let sleep = host.witness(&["/bin/sleep", "600"]);
    host.write_config(&format!(
        r#"
[process.zone]
command = {zone}
ports = {{ game = "udp" }}
heartbeat = {{ mode = "native", interval = "200ms", timeout = "5s" }}

[process.beat]
command = {beat}
heartbeat = {{ mode = "notify", interval = "200ms", timeout = "5s" }}

[process.nobody]
command = {beat}
user = "nobody"
heartbeat = {{ mode = "notify", interval = "200ms", timeout = "5s" }}

[process.mute]
command = {sleep}
ready = {{ mode = "spawned", after = "10ms" }}
heartbeat = {{ mode = "none" }}

[process.once]
command = {sleep}
ready = {{ mode = "spawned", after = "10ms" }}
heartbeat = {{ mode = "none" }}
restart = {{ policy = "never" }}
"#
    ));
}

/// The games beat to this agent: nothing that it took over is older than it.
fn beats_arrive(host: &Host, since: Instant) {
    until("heartbeats arrive", || {
        for name in BEATING {
            let view = host.view(name)?;
            // Longer than the timeout: who has not beaten by now is hung.
            let waited = since.elapsed() > Duration::from_millis(5_500);
            expect(waited && view.heartbeat.age_ms.is_some_and(|age| age < 1_500), &view)?;
        }
        Ok(())
    });
}

fn adopts_after(cgroups: Cgroups, end: impl Fn(&mut Host), keeper_too: bool) {
    let mut host = Host::new(cgroups);
    household(&host);
    host.start();
    let before = host.settled(&ALL);
    let keepers = host.keepers();

    end(&mut host);
    for (name, view) in &before {
        assert!(view.pid.is_some_and(alive), "{name} died with the agent");
    }
    host.start();
    let started = Instant::now();
    host.settled(&ALL);
    beats_arrive(&host, started);
    let after = host.settled(&ALL);
    for (name, old) in &before {
        let new = &after[name];
        let told = |v: &bigbrother::http::view::InstanceView| (v.pid, v.run, v.ports.clone(), v.restarts);
        assert_eq!(told(new), told(old), "{name} is the same run");
        assert_eq!(host.witnessed(name), vec![old.pid.unwrap()]);
    }
    assert_eq!(host.keepers() != keepers, keeper_too, "the keeper stays unless it was killed");

    // Policies hold for the adopted.
    for name in ["mute.0", "once.0"] {
        signal(before[name].pid.unwrap(), libc::SIGKILL);
    }
    until("mute.0 is started again", || {
        let view = host.view("mute.0")?;
        expect(view.state == "ready" && view.pid != before["mute.0"].pid, &view)
    });
    let once = until("once.0 stays down", || {
        let view = host.view("once.0")?;
        expect(view.state == "stopped" && view.last_exit.is_some(), &view)?;
        Ok(view)
    });
    let exit = once.last_exit.unwrap();
    assert_eq!((exit.cause.as_str(), exit.signal.as_deref()), ("signal", Some("SIGKILL")));
    assert_eq!(host.witnessed("once.0").len(), 1);
    // A hung one is still seen.
    signal(before["zone.0"].pid.unwrap(), libc::SIGSTOP);
    until("the hung zone is replaced", || {
        let view = host.view("zone.0")?;
        let hang = view.last_exit.as_ref().is_some_and(|exit| exit.cause == "hang");
        expect(hang && view.state == "ready" && view.ports == before["zone.0"].ports, &view)
    });
}

#[test]
fn a_stopped_agent_leaves_its_games_to_the_next() {
    adopts_after(Cgroups::Own, Host::stop_agent, false);
}

#[test]
fn a_killed_agent_leaves_its_games_to_the_next_without_cgroups() {
    adopts_after(Cgroups::None, Host::kill_agent, false);
}

#[test]
fn agent_and_keeper_killed_leave_their_games_to_the_next() {
    let both = |host: &mut Host| {
        host.kill_agent();
        host.kill_keeper();
    };
    adopts_after(Cgroups::Own, both, true);
}

#[test]
fn agent_and_keeper_killed_leave_their_games_to_the_next_without_cgroups() {
    let both = |host: &mut Host| {
        host.kill_agent();
        host.kill_keeper();
    };
    adopts_after(Cgroups::None, both, true);
}

/// A process that exits with code 7 when it is told to, and one that dies of SIGSEGV.
fn mortals(host: &Host) {
    let go = host.root.join("go");
    let wait = format!("while [ ! -e {} ]; do sleep 0.02; done", go.display());
    let exits = host.witness(&["/bin/sh", "-c", &format!("{wait}; exit 7")]);
    let crashes = host.witness(&["/bin/sh", "-c", &format!("{wait}; kill -SEGV $$")]);
    host.write_config(&format!(
        r#"
[process.exits]
command = {exits}
ready = {{ mode = "spawned", after = "10ms" }}
heartbeat = {{ mode = "none" }}
restart = {{ policy = "never" }}

[process.crashes]
command = {crashes}
ready = {{ mode = "spawned", after = "10ms" }}
heartbeat = {{ mode = "none" }}
restart = {{ policy = "never" }}
"#
    ));
}

/// Lets both die while nobody is there to see it.
fn die(host: &Host, pids: [i32; 2]) {
    std::fs::write(host.root.join("go"), "").unwrap();
    until("both are dead", || expect(!pids.into_iter().any(alive), pids));
}

fn ends(host: &Host) -> [(String, Option<i32>, Option<String>); 2] {
    ["exits.0", "crashes.0"].map(|name| {
        until(&format!("{name} is known to have ended"), || {
            let view = host.view(name)?;
            let exit = view.last_exit.clone().filter(|_| view.state == "stopped");
            exit.map(|exit| (exit.cause, exit.code, exit.signal)).ok_or_else(|| format!("{view:?}"))
        })
    })
}

#[test]
fn what_died_while_the_agent_was_away_is_known_by_its_keeper() {
    let mut host = Host::new(Cgroups::Own);
    mortals(&host);
    host.start();
    let pids = ["exits.0", "crashes.0"].map(|name| host.ready(name).pid.unwrap());
    host.kill_agent();
    die(&host, pids);
    host.start();
    let [exit, crash] = ends(&host);
    assert_eq!(exit, ("exit".to_owned(), Some(7), None));
    assert_eq!(crash, ("signal".to_owned(), None, Some("SIGSEGV".to_owned())));
}

#[test]
fn what_died_while_the_keeper_was_away_too_is_unknown_or_right() {
    for cgroups in [Cgroups::Own, Cgroups::None] {
        let mut host = Host::new(cgroups);
        mortals(&host);
        host.start();
        let pids = ["exits.0", "crashes.0"].map(|name| host.ready(name).pid.unwrap());
        host.kill_agent();
        host.kill_keeper();
        die(&host, pids);
        host.start();
        let unknown = ("unknown".to_owned(), None, None);
        let [exit, crash] = ends(&host);
        assert!(exit == unknown || exit == ("exit".to_owned(), Some(7), None), "{exit:?}");
        let right = ("signal".to_owned(), None, Some("SIGSEGV".to_owned()));
        assert!(crash == unknown || crash == right, "{crash:?}");
        for name in ["exits.0", "crashes.0"] {
            assert_eq!(host.witnessed(name).len(), 1, "restart policy `never`");
        }
    }
}

/// Bytes in the log files of an instance.
fn logged(host: &Host, instance: &str) -> u64 {
    let files = std::fs::read_dir(host.data.join("logs").join(instance)).into_iter().flatten().flatten();
    files.map(|file| file.metadata().map_or(0, |known| known.len())).sum()
}

#[test]
fn another_bound_on_logs_holds_for_runs_of_before_under_whoever_comes() {
    const KIB: u64 = 1 << 10;
    let mut host = Host::new(Cgroups::Own);
    let talker = host.witness(&[
        "/bin/sh",
        "-c",
        "while :; do head -c 4000 /dev/zero | tr '\\0' x; echo; sleep 0.005; done",
    ]);
    let processes = |size: &str| {
        format!(
            "[process.talker]\ncommand = {talker}\nlogs = {{ size = \"{size}\", files = 2 }}\n\
             ready = {{ mode = \"spawned\", after = \"10ms\" }}\nheartbeat = {{ mode = \"none\" }}\n"
        )
    };
    host.write_config(&processes("64MiB"));
    host.start();
    let run = host.ready("talker.0").run;
    until("it has written more than is to stay", || {
        expect(logged(&host, "talker.0") > 512 * KIB, logged(&host, "talker.0"))
    });
    let written = |host: &Host| host.metric("bigbrother_log_bytes_total", "");
    let bounded = |host: &Host, who: &str| {
        let before = until("a metric", || written(host));
        until(&format!("{who} keeps to the new bound"), || {
            let (more, on_disk) = (written(host)? - before, logged(host, "talker.0"));
            // What it has written since does not fit; files, and a line that goes over.
            expect(more > 512.0 * 1024.0 && on_disk < (2 * 64 + 64) * KIB, (more, on_disk))
        });
        assert_eq!(host.view("talker.0").unwrap().run, run, "it is the run of before");
    };
    // A new agent, and a file that was changed while there was none.
    host.stop_agent();
    host.write_config(&processes("64KiB"));
    host.start();
    bounded(&host, "the keeper");
    host.kill_keeper();
    until("another keeper", || {
        let keeper = host.status()?.keeper;
        expect(keeper.is_some_and(|keeper| host.keepers().contains(&keeper.pid)), host.keepers())
    });
    bounded(&host, "the next keeper");
}

#[test]
fn stop_all_then_an_ended_agent_leaves_nothing() {
    let mut host = Host::new(Cgroups::Own);
    household(&host);
    host.start();
    host.settled(&ALL);
    let ran = std::process::Command::new(env!("CARGO_BIN_EXE_bigbrother"))
        .arg("--api")
        .arg(format!("unix:{}", host.runtime.join("api.sock").display()))
        .args(["stop", "--all"])
        .output()
        .unwrap();
    assert!(ran.status.success(), "{ran:?}");
    until("the games are gone", || expect(host.games().is_empty(), host.games()));
    let views = host.ps().unwrap();
    assert!(views.values().all(|view| view.state == "paused" && view.pid.is_none()), "{views:?}");

    host.stop_agent();
    // It waits a while for the next agent, in vain.
    until("the idle keeper ends", || expect(host.keepers().is_empty(), host.keepers()));
    let left: Vec<_> = std::fs::read_dir(&host.cgroup).into_iter().flatten().flatten().collect();
    let populated = left.iter().any(|entry| {
        std::fs::read_to_string(entry.path().join("cgroup.procs")).is_ok_and(|procs| !procs.is_empty())
    });
    assert!(!populated, "{left:?}");

    // What an operator stopped stays stopped until it is started.
    host.start();
    std::thread::sleep(Duration::from_millis(200));
    assert!(host.games().is_empty(), "{:?}", host.games());
    host.post("/v1/start", &json!({ "target": "all" })).unwrap();
    host.settled(&ALL);
}

/// Nobody else would hold the fence of those among its runs that are exclusive.
#[test]
fn the_new_keeper_of_an_agent_that_cannot_begin_stays_as_long_as_it_has_runs() {
    let mut host = Host::new(Cgroups::None);
    household(&host);
    host.start();
    host.settled(&ALL);
    host.kill_agent();
    host.kill_keeper();
    // Then it begins with a keeper of its own, before all else.
    fs::remove_file(host.runtime.join(SOCKET)).unwrap();
    let (book, games) = (host.data.join("host.json"), host.games());
    fs::write(&book, "no book").unwrap();
    host.launch_agent();
    assert!(!host.agent_ended().success());
    let [keeper] = host.keepers()[..] else { panic!("{:?}", host.keepers()) };
    fs::remove_file(&book).unwrap();
    host.start();
    host.settled(&ALL);
    assert_eq!((host.status().unwrap().keeper.map(|met| met.pid), host.games()), (Some(keeper), games));
}

#[test]
fn an_agent_that_cannot_begin_leaves_no_idle_keeper() {
    let mut host = Host::new(Cgroups::None);
    household(&host);
    fs::create_dir_all(&host.data).unwrap();
    fs::write(host.data.join("host.json"), "no book").unwrap();
    host.launch_agent();
    assert!(!host.agent_ended().success());
    // It was started: that is what is held.
    assert!(host.data.join("keeper.log").exists(), "{}", host.logs());
    until("the idle keeper ends", || expect(host.keepers().is_empty(), host.keepers()));
}

#[test]
fn a_keeper_that_another_has_followed_at_once_is_no_zombie_of_the_agent() {
    let mut host = Host::new(Cgroups::None);
    household(&host);
    host.start();
    host.settled(&ALL);
    let [keeper] = host.keepers()[..] else { panic!("{:?}", host.keepers()) };
    // The agent sees nothing of the moment in which there is none.
    signal(host.agent_pid(), libc::SIGSTOP);
    signal(keeper, libc::SIGKILL);
    until("the keeper has ended", || expect(!alive(keeper), keeper));
    host.own_keeper(None);
    let socket = host.runtime.join(SOCKET);
    until("another keeper listens", || {
        let (kind, flags) = (SockType::SeqPacket, SockFlag::SOCK_CLOEXEC);
        let asking = socket_of(AddressFamily::Unix, kind, flags, None).unwrap();
        connect(asking.as_raw_fd(), &UnixAddr::new(&socket).unwrap()).map_err(|e| e.to_string())
    });
    signal(host.agent_pid(), libc::SIGCONT);
    until("the agent has met the other keeper", || {
        let met = host.status()?.keeper.map(|met| met.pid);
        expect(met.is_some_and(|pid| pid != keeper), met)
    });
    let there = || std::path::Path::new(&format!("/proc/{keeper}")).exists();
    until("the first one is no zombie", || expect(!there(), stat(keeper)));
    host.settled(&ALL);
}

//! Processes that cannot be started: a clear reason, a metric, a slow pace; and processes that write too much.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use super::host::{Cgroups, Host, SmallDisk, expect, until};
use super::neighbours::{self, Neighbours};

const QUIET: &str = "ready = { mode = \"spawned\", after = \"10ms\" }\nheartbeat = { mode = \"none\" }\n\
                     restart = { backoff = { min = \"200ms\", max = \"10s\" }, give_up = { failures = 3, within = \"10m\" } }\n";

/// A process that cannot be started beside healthy ones: `failed` with these words after a few tries, not many.
fn cannot_start(bad: &str, step: &str, words: &[&str], prepare: impl FnOnce(&mut Host)) {
    let mut host = Host::new(Cgroups::Own);
    prepare(&mut host);
    let bad = bad.replace("ROOT", host.root.to_str().unwrap());
    host.write_config(&format!("{}\n[process.bad]\n{bad}\n{QUIET}", neighbours::toml(&host)));
    let begun = Instant::now();
    host.start();
    let neighbours = Neighbours::of(&host);
    let view = neighbours.watch_until(&host, "it is given up", || {
        let view = host.view("bad.0")?;
        expect(view.state == "failed", &view)?;
        Ok(view)
    });
    let reason = view.reason.clone().unwrap_or_default();
    assert!(words.iter().all(|word| reason.contains(word)), "{words:?} in {reason:?}");
    let exit = view.last_exit.expect("an end");
    assert_eq!((exit.cause.as_str(), exit.code, exit.signal), ("spawn", None, None));
    assert_eq!(view.pid, None);
    // At once, then after 200 ms and more: 3 failures are borne, the fourth is the last.
    let failures: Vec<_> = host.events("bad.0").into_iter().filter(|e| e.kind == "spawn-failed").collect();
    assert_eq!(failures.len(), 4, "{failures:?}");
    let told = failures.iter().all(|e| words.iter().all(|w| e.detail.as_deref().unwrap_or("").contains(w)));
    assert!(told, "{words:?} in {failures:?}");
    assert!(begun.elapsed() > Duration::from_millis(300), "no loop at full speed: {:?}", begun.elapsed());
    let label = format!("step=\"{step}\"");
    assert_eq!(host.metric("bigbrother_spawn_failures_total", &label).unwrap(), 4.0);
    neighbours.noticed_nothing(&host);
}

#[test]
fn no_such_file() {
    cannot_start(r#"command = ["/no/such/game"]"#, "exec", &["No such file", "/no/such/game"], |_| ());
}

#[test]
fn no_permission_to_execute() {
    let bad = r#"command = ["ROOT/plain"]"#;
    cannot_start(bad, "exec", &["Permission denied", "plain"], |host| {
        let path = host.root.join("plain");
        std::fs::write(&path, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    });
}

#[test]
fn not_a_program() {
    let bad = r#"command = ["ROOT/noise"]"#;
    cannot_start(bad, "exec", &["Exec format error", "noise"], |host| {
        let path = host.root.join("noise");
        std::fs::write(&path, [0_u8; 64]).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    });
}

#[test]
fn an_unknown_user() {
    let bad = "command = [\"/bin/sleep\", \"600\"]\nuser = \"no-such-user\"";
    cannot_start(bad, "account", &["no user no-such-user"], |_| ());
}

/// `nice bigbrother agent`, by somebody who is not root.
#[test]
fn a_low_priority_that_may_not_be_raised() {
    let mut host = Host::new(Cgroups::None);
    let sleep = host.witness(&["/bin/sleep", "600"]);
    host.write_config(&format!("[process.bad]\ncommand = {sleep}\n{QUIET}"));
    std::fs::set_permissions(host.config(), std::fs::Permissions::from_mode(0o644)).unwrap();
    host.uid = Some(65_534);
    // SAFETY: touches no memory. It is the priority of this thread, which the agent inherits.
    assert_eq!(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) }, 0);
    host.start();
    let pid = host.ready("bad.0").pid.unwrap();
    // SAFETY: as above.
    assert_eq!(unsafe { libc::getpriority(libc::PRIO_PROCESS, pid as libc::id_t) }, 19);
}

#[test]
fn no_free_port() {
    let bad = "command = [\"/bin/sleep\", \"600\"]\nports = { game = \"udp\" }";
    let mut held = Vec::new();
    cannot_start(bad, "port", &["no free udp port"], |host| {
        // A range of one, and that one is taken.
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        host.ports = (port, port);
        held.push(socket);
    });
}

/// Stopped, its port taken by somebody else, and started again: it is back on another port, which stays its own.
#[test]
fn a_port_that_somebody_takes_while_its_server_is_down() {
    let mut host = Host::new(Cgroups::Own);
    let zone = host.zone("{port.game}");
    host.write_config(&format!("[process.zone]\ncommand = {zone}\nports = {{ game = \"udp\" }}\n"));
    host.start();
    let port = |view: &bigbrother::http::view::InstanceView| view.ports["game"].port;
    let first = port(&host.ready("zone.0"));
    let ask = |what: &str| {
        host.post(what, &serde_json::json!({ "target": { "instance": "zone.0" } })).unwrap();
    };
    ask("/v1/stop");
    until("it is stopped", || {
        let view = host.view("zone.0")?;
        expect(view.state == "paused", &view)
    });
    let taken = std::net::UdpSocket::bind(("127.0.0.1", first)).unwrap();
    ask("/v1/start");
    let second = host.ready("zone.0");
    assert_ne!(port(&second), first);
    assert_eq!((second.restarts, &second.last_exit.unwrap().cause[..]), (0, "stop"), "it was started once");
    let moved = host.events("zone.0").into_iter().find(|event| event.kind == "port-moved");
    let told = moved.and_then(|event| event.detail).expect("it is told");
    assert!(
        told.contains(&first.to_string()) && told.contains(&port(&host.view("zone.0").unwrap()).to_string()),
        "{told}"
    );
    drop(taken);
    super::host::signal(second.pid.unwrap(), libc::SIGKILL);
    until("it is back", || {
        let view = host.view("zone.0")?;
        expect(
            view.state == "ready" && view.run > second.run && port(&view) == second.ports["game"].port,
            &view,
        )
    });
}

/// A port that must not be moved: its program says only that it ended, so the agent says why.
#[test]
fn a_fixed_port_that_somebody_else_has() {
    let mut host = Host::new(Cgroups::Own);
    let taken = std::net::UdpSocket::bind(("127.0.0.1", host.ports.0)).unwrap();
    let zone = host.zone("{port.game}");
    host.write_config(&format!(
        "[process.zone]\ncommand = {zone}\nports = {{ game = {} }}\n\
         restart = {{ backoff = {{ min = \"10ms\", max = \"20ms\" }}, give_up = {{ failures = 2, within = \"10m\" }} }}\n",
        host.ports.0
    ));
    host.start();
    until("it is given up", || {
        let view = host.view("zone.0")?;
        expect(view.state == "failed", &view)
    });
    let told = host.events("zone.0").into_iter().find(|event| event.kind == "port-taken");
    let told = told.and_then(|event| event.detail).expect("it is told");
    assert_eq!(told, format!("another program has {}/udp (game)", host.ports.0));
    drop(taken);
    host.post("/v1/start", &serde_json::json!({ "target": { "instance": "zone.0" } })).unwrap();
    assert_eq!(host.ready("zone.0").ports["game"].port, host.ports.0);
    let last = host.events("zone.0").into_iter().rfind(|event| event.kind == "port-taken");
    assert_ne!(
        last.and_then(|event| event.run),
        host.view("zone.0").unwrap().run,
        "not of the run that has it"
    );
}

#[test]
fn a_working_folder_that_is_not_there() {
    let bad = "command = [\"/bin/sleep\", \"600\"]\nworking_dir = \"/no/such/folder\"";
    cannot_start(bad, "working_dir", &["working folder", "No such file"], |_| ());
}

#[test]
fn no_permission_to_change_the_user() {
    // An agent that is nobody, asked to run something as root.
    let mut host = Host::new(Cgroups::None);
    host.uid = Some(65_534);
    // The program sets a process's priority, which nobody but root may raise: begin with the usual one.
    // SAFETY: setpriority touches no memory.
    assert_eq!(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 0) }, 0);
    let bad = "command = [\"/bin/sleep\", \"600\"]\nuser = \"root\"";
    host.write_config(&format!("{}\n[process.bad]\n{bad}\n{QUIET}", neighbours::toml(&host)));
    host.start();
    let neighbours = Neighbours::of(&host);
    let view = neighbours.watch_until(&host, "it is given up", || {
        let view = host.view("bad.0")?;
        expect(view.state == "failed", &view)?;
        Ok(view)
    });
    let reason = view.reason.clone().unwrap_or_default();
    assert!(reason.contains("not root") || reason.contains("not permitted"), "{view:?}");
    let failures = host.events("bad.0").into_iter().filter(|e| e.kind == "spawn-failed").count();
    assert_eq!(failures, 4);
    assert_eq!(host.metric("bigbrother_spawn_failures_total", "").unwrap(), 4.0);
    neighbours.noticed_nothing(&host);
}

/// Writes as fast as it can; with or without newlines.
fn chatter(host: &Host, newlines: bool) -> String {
    match newlines {
        true => host.witness(&["/usr/bin/yes"]),
        false => host.witness(&["/bin/cat", "/dev/zero"]),
    }
}

fn size_of(folder: &std::path::Path) -> u64 {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    files
        .map(|e| if e.path().is_dir() { size_of(&e.path()) } else { e.metadata().map_or(0, |m| m.len()) })
        .sum()
}

fn writes_too_much(newlines: bool) {
    const MIB: u64 = 1 << 20;
    let mut host = Host::new(Cgroups::Own);
    let chatter = chatter(&host, newlines);
    host.write_config(&format!(
        "{}\n[process.chatter]\ncommand = {chatter}\nlogs = {{ size = \"1MiB\", files = 3 }}\n{QUIET}",
        neighbours::toml(&host)
    ));
    host.start();
    let neighbours = Neighbours::of(&host);
    host.ready("chatter.0");
    let begun = Instant::now();
    let (mut most, logs) = (0, host.data.join("logs"));
    // As much as 100 MB/s would be over some seconds.
    neighbours.watch_until(&host, "300 MB were written", || {
        most = most.max(size_of(&logs));
        let written = host.metric("bigbrother_log_bytes_total", "")?
            + host.metric("bigbrother_log_dropped_bytes_total", "")?;
        expect(written > 300e6, written)
    });
    let rate = 300.0 / begun.elapsed().as_secs_f64();
    eprintln!("newlines {newlines}: at least {rate:.0} MB/s, at most {most} bytes on disk");
    // Three files for each of stdout and stderr, if they were apart, and a little for the other processes.
    assert!(most > MIB, "it writes into {}: {most}", logs.display());
    assert!(most <= 3 * MIB + MIB / 2, "{most} bytes on disk");
    neighbours.noticed_nothing(&host);
    assert_eq!(host.view("chatter.0").unwrap().restarts, 0);
}

#[test]
fn a_hundred_megabytes_a_second_in_lines() {
    writes_too_much(true);
}

#[test]
fn a_hundred_megabytes_a_second_without_a_newline() {
    writes_too_much(false);
}

#[test]
fn a_full_disk_costs_log_lines_and_nothing_else() {
    let mut host = Host::new(Cgroups::Own);
    let disk = SmallDisk::mount(&host.data, "4m");
    let root = host.root.to_str().unwrap().to_owned();
    let script = host.root.join("writer");
    let writer = "import os, sys, time\nn = 0\nwhile True:\n    os.write(1, b'x' * 1000 + b'\\n')\n    n += 1\n    \
                  open(sys.argv[1] + '/written', 'w').write(str(n))\n    time.sleep(0.001)\n";
    std::fs::write(&script, writer).unwrap();
    let writer = host.witness(&["/usr/bin/python3", script.to_str().unwrap(), &root]);
    host.write_config(&format!("{}\n[process.writer]\ncommand = {writer}\n{QUIET}", neighbours::toml(&host)));
    host.start();
    let neighbours = Neighbours::of(&host);
    host.ready("writer.0");
    let filler = disk.fill();
    let written = || -> u64 {
        let text = std::fs::read_to_string(host.root.join("written")).unwrap_or_default();
        text.parse().unwrap_or(0)
    };
    neighbours.watch_until(&host, "what the disk refuses is counted", || {
        let dropped = host.metric("bigbrother_log_dropped_bytes_total", "")?;
        expect(dropped > 100_000.0, dropped)
    });
    let before = written();
    neighbours.watch_until(&host, "it writes on", || expect(written() > before + 500, written()));
    assert_eq!(host.view("writer.0").unwrap().restarts, 0);
    // Kill and restart need no disk.
    let old = host.view("zone.1").unwrap();
    super::host::signal(host.view("writer.0").unwrap().pid.unwrap(), libc::SIGKILL);
    until("it is started again", || {
        let view = host.view("writer.0")?;
        expect(view.state == "ready" && view.restarts == 1, &view)
    });
    assert_eq!(host.view("zone.1").unwrap().run, old.run);
    std::fs::remove_file(filler).unwrap();
    let kept = host.metric("bigbrother_log_bytes_total", "").unwrap();
    until("logs go on when there is room", || {
        let now = host.metric("bigbrother_log_bytes_total", "")?;
        expect(now > kept + 10_000.0, now)
    });
    neighbours.noticed_nothing(&host);
    host.power_off();
    drop(disk);
}

/// A crowd of programs that end at once and are started again at once: the keeper always has something to say,
/// and everybody else is heard all the same.
#[test]
fn a_crowd_that_ends_at_once_leaves_the_api_answering() {
    let mut host = Host::new(Cgroups::Own);
    host.write_config(
        "[process.crowd]\ncommand = [\"/bin/true\"]\ncount = 400\nheartbeat = { mode = \"none\" }\n\
         restart = { backoff = false, give_up = false }\n",
    );
    host.start();
    let runs = || host.metric("bigbrother_restarts_total", "cause=\"exit\"");
    until("the crowd is restarted again and again", || {
        let runs = runs()?;
        expect(runs > 1_000.0, runs)
    });
    for _ in 0..10 {
        let begun = Instant::now();
        host.view("crowd.399").unwrap();
        assert!(begun.elapsed() < Duration::from_secs(3), "answered after {:?}", begun.elapsed());
    }
    host.post("/v1/stop", &serde_json::json!({ "target": "all" })).unwrap();
    until("all are stopped", || {
        let view = host.view("crowd.399")?;
        expect(view.state == "paused", &view)
    });
}

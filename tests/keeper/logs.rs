//! Log files, and notify sockets without an agent: nothing is lost and nobody is blocked.

use std::fs;
use std::io::IoSlice;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Instant;

use bigbrother::keeper::protocol::{End, LogTarget, Reply, Request, RunId};
use bigbrother::spec::InstanceId;
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};

use super::host::{DEADLINE, Host, held_sockets, spawn, stop, until, until_true};

#[test]
fn without_an_agent_the_notify_sockets_are_drained() {
    let mut host = Host::new(true);
    let mut agent = host.greeted();
    let (listener, notify) = held_sockets(&host);
    let instance: InstanceId = "zone.1".parse().unwrap();
    let fds = [listener.as_raw_fd(), notify.as_raw_fd()];
    agent.send_with(&Request::Hold { instance: instance.clone() }, &fds);
    agent.hello();
    let sender = UnixDatagram::unbound().unwrap();
    let path = host.runtime.parent().unwrap().join("notify.sock");
    sender.set_write_timeout(Some(DEADLINE)).unwrap();

    // The agent is connected but silent. Far more than the socket's queue (10 datagrams) holds.
    sender.send_to(b"READY=1", &path).unwrap();
    for _ in 0..2000 {
        sender.send_to(b"WATCHDOG=1", &path).expect("nobody reads the notify socket");
    }
    sender.send_to(b"STATUS=last", &path).unwrap();
    agent.send(&Request::Ping);
    let mut texts = Vec::new();
    agent.expect("the drained datagrams", |reply| {
        if let Reply::Datagram { instance: of, pid, data } = reply {
            assert_eq!((of, *pid), (&instance, std::process::id() as i32));
            texts.push(String::from_utf8(data.clone()).unwrap());
        }
        texts.last().is_some_and(|t| t == "STATUS=last").then_some(())
    });
    assert_eq!(texts, ["READY=1", "WATCHDOG=1", "STATUS=last"]);

    // No connection at all, and an end of a BARRIER: the descriptor is closed.
    drop(agent);
    let (mut end, barrier) = std::io::pipe().unwrap();
    let rights = [barrier.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&rights)];
    let address = UnixAddr::new(&path).unwrap();
    let vector = [IoSlice::new(b"BARRIER=1")];
    sendmsg(sender.as_raw_fd(), &vector, &control, MsgFlags::empty(), Some(&address)).unwrap();
    drop(barrier);
    assert_eq!(std::io::Read::read(&mut end, &mut [0]).unwrap(), 0, "the barrier's descriptor is open");
    let mut agent = host.connect();
    let listing = agent.hello();
    assert_eq!(listing.datagrams, [(std::process::id() as i32, "BARRIER=1".to_owned())]);
    assert_eq!(listing.held.len(), 1);
    agent.send(&Request::Release { instance });
    assert_eq!(agent.hello().held.len(), 0);
}

#[test]
fn what_a_run_said_while_the_agent_was_silent_is_told_before_its_end() {
    let mut host = Host::new(true);
    let mut agent = host.greeted();
    let (listener, notify) = held_sockets(&host);
    let fds = [listener.as_raw_fd(), notify.as_raw_fd()];
    agent.send_with(&Request::Hold { instance: "zone.1".parse().unwrap() }, &fds);
    let path = host.runtime.parent().unwrap().join("notify.sock");
    // More than the socket's queue holds: it can end only when the keeper reads it.
    let script = format!(
        "import socket\ns = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\ns.connect({:?})\n\
         for n in range(30): s.send(b'EXTEND_TIMEOUT_USEC=%d' % n)\ns.send(b'STOPPING=1')",
        path.to_str().unwrap()
    );
    spawn(&agent, host.spawn_of(1, "zone.1", &["/usr/bin/python3", "-c", &script]));
    // No ping comes from the agent until it is over.
    let pid = agent.spawned(1);
    until_true("the run ends", || !Path::new(&format!("/proc/{pid}")).exists());
    let mut texts = Vec::new();
    let end = agent.expect("its end", |reply| match reply {
        Reply::Datagram { data, .. } => {
            texts.push(String::from_utf8(data.clone()).unwrap());
            None
        }
        Reply::Gone { run: RunId(1), end, .. } => Some(*end),
        _ => None,
    });
    assert_eq!(end, End::Code(0));
    assert_eq!((texts.len(), texts.last().map(String::as_str)), (31, Some("STOPPING=1")));
}

#[test]
fn no_line_is_lost_when_the_keeper_is_killed() {
    let mut host = Host::new(true);
    let mut agent = host.greeted();
    let mut request =
        host.shell(1, "zone.1", "i=0; while [ $i -lt 60000 ]; do i=$((i+1)); echo line $i; done; sleep 1000");
    request.logs = LogTarget::Files {
        folder: host.logs.join("zone.1").to_str().unwrap().into(),
        size: 1 << 26,
        files: 1,
    };
    spawn(&agent, request);
    agent.spawned(1);
    for round in 0..5 {
        until_true("the log grows", || host.log("zone.1", "stdout.log").len() > 20_000 * round);
        host.kill_keeper();
        agent = host.start();
        agent.hello();
    }
    let text = until("the last line", || {
        let text = host.log("zone.1", "stdout.log");
        if text.ends_with("line 60000\n") { Ok(text) } else { Err(format!("{} bytes", text.len())) }
    });
    for (at, line) in text.lines().enumerate() {
        assert_eq!(line, format!("line {}", at + 1));
    }
    assert_eq!(text.lines().count(), 60_000);
}

/// Bytes of all files of a stream.
fn kept(folder: &Path, stream: &str) -> u64 {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    files
        .filter(|e| e.file_name().to_str().unwrap().starts_with(stream))
        .filter_map(|e| Some(e.metadata().ok()?.len()))
        .sum()
}

#[test]
fn a_flood_keeps_to_its_bound_and_leaves_room_for_others() {
    let mut host = Host::new(true);
    let mut agent = host.greeted();
    let (size, files) = (1 << 20, 3);
    for (run, script) in [(1, "yes 0123456789abcdef"), (2, "tr '\\0' x < /dev/zero")] {
        let instance = format!("flood.{run}");
        let mut request = host.shell(run, &instance, &format!("exec {script}"));
        let folder = host.logs.join(&instance).to_str().unwrap().to_owned();
        request.logs = LogTarget::Files { folder, size, files };
        spawn(&agent, request);
        agent.spawned(run);
    }
    let mut total = 0;
    let begun = Instant::now();
    let mut asked = 100;
    while total < 150_000_000 {
        assert!(begun.elapsed() < DEADLINE, "only {total} bytes");
        // Another one's line comes through meanwhile.
        spawn(&agent, host.shell(asked, "quiet.1", &format!("echo line {asked}")));
        agent.gone(asked);
        host.log_has("quiet.1", &format!("line {asked}\n"));
        asked += 1;
        // Held still while it is measured: a rename in between would count a file twice.
        stop(host.keeper_pid());
        for run in [1, 2] {
            let bytes = kept(&host.logs.join(format!("flood.{run}")), "stdout.log");
            assert!(bytes <= size * u64::from(files) + 64 * 1024, "flood.{run} keeps {bytes} bytes");
        }
        // SAFETY: our own keeper.
        unsafe { libc::kill(host.keeper_pid(), libc::SIGCONT) };
        let sum = |r: &Reply| if let Reply::LogBytes { kept, .. } = r { *kept } else { 0 };
        total = agent.seen.iter().map(sum).sum::<u64>();
    }
    for run in [1, 2] {
        agent.send(&Request::Kill { run: RunId(run) });
        agent.gone(run);
    }
    // Lines are whole, in every file.
    for name in ["stdout.log.1", "stdout.log.2"] {
        let text = host.log("flood.1", name);
        assert!(text.ends_with('\n') && text.lines().all(|l| l == "0123456789abcdef"), "{name} is torn");
    }
}

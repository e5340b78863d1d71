//! Whom the keeper listens to, and what it keeps until it is acknowledged.

use std::fs;
use std::io::IoSlice;
use std::os::fd::AsRawFd;
use std::process::Command;

use bigbrother::keeper::protocol::{End, Reply, Request, RunId, RunRecord, Stage};
use nix::sys::socket::{MsgFlags, sendmsg};

use super::host::{Host, spawn, until};

#[test]
fn ends_are_kept_until_acknowledged_and_strangers_are_turned_away() {
    let mut host = Host::new(true);
    let mut agent = host.greeted();
    spawn(&agent, host.shell(1, "zone.1", "exit 6"));
    agent.spawned(1);
    drop(agent);
    let mut agent = host.connect();
    until("the end is listed", || {
        let runs = agent.hello().runs;
        match runs.as_slice() {
            [RunRecord { stage: Stage::Gone { end: End::Code(6), fenced: false }, .. }] => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    agent.send(&Request::Acknowledge { run: RunId(1) });
    assert_eq!(agent.hello().runs, []);

    // A user that is neither root nor the keeper's, let in by the file's mode: the peer check is what holds.
    fs::set_permissions(
        host.runtime.join("keeper.sock"),
        std::os::unix::fs::PermissionsExt::from_mode(0o666),
    )
    .unwrap();
    let script = "import socket,sys\ns=socket.socket(socket.AF_UNIX,socket.SOCK_SEQPACKET)\n\
                  s.settimeout(20)\ns.connect(sys.argv[1])\nsys.exit(0 if s.recv(1)==b'' else 1)";
    fs::set_permissions(host.runtime.parent().unwrap(), std::os::unix::fs::PermissionsExt::from_mode(0o711))
        .unwrap();
    let mut stranger = Command::new("python3");
    stranger.args(["-c", script]).arg(host.runtime.join("keeper.sock"));
    let status = std::os::unix::process::CommandExt::uid(&mut stranger, 65534).status().unwrap();
    assert!(status.success(), "the stranger was not turned away: {status}");
    // And ours is still there.
    agent.hello();
}

#[test]
fn a_second_keeper_refuses_to_start() {
    let mut host = Host::new(true);
    let _agent = host.greeted();
    let first = host.keeper.take();
    let output = Command::new(env!("CARGO_BIN_EXE_bigbrother"))
        .arg("keeper")
        .arg("--runtime-dir")
        .arg(&host.runtime)
        .output()
        .unwrap();
    host.keeper = first;
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("another keeper serves"), "{text}");
}

#[test]
fn rubbish_on_the_socket_is_refused_and_harms_nothing() {
    let mut host = Host::new(true);
    let mut agent = host.greeted();
    for packet in [&b"\x01"[..], b"\x07hello", b"\x01\xff\xff\xff\xff", &[1; 4096]] {
        sendmsg::<()>(agent.socket.as_raw_fd(), &[IoSlice::new(packet)], &[], MsgFlags::empty(), None)
            .unwrap();
        agent.expect("a refusal", |r| matches!(r, Reply::Refused { run: None, .. }).then_some(()));
    }
    spawn(&agent, host.shell(1, "zone.1", "exit 0"));
    assert_eq!(agent.gone(1).0, End::Code(0));
}

//! A user database that does not answer.

use std::fs::OpenOptions;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::process::Command;
use std::time::{Duration, Instant};

use super::host::{Cgroups, Host, expect, signal, until};

/// Who asks a user database that does not answer is waited for this long (`LONGEST_LOOK_UP`).
const LONGEST_LOOK_UP: Duration = Duration::from_secs(5);

#[test]
fn an_account_that_cannot_be_looked_up_holds_up_nobody_else() {
    let mut host = Host::new(Cgroups::Own);
    // Whoever opens this /etc/passwd waits for a writer; only agent, keeper and games see it.
    let passwd = host.root.join("passwd");
    nix::unistd::mkfifo(&passwd, nix::sys::stat::Mode::from_bits_truncate(0o644)).unwrap();
    let script = format!("mount --bind {} /etc/passwd && exec \"$@\"", passwd.display());
    host.through = ["unshare", "--mount", "sh", "-c", &script, "sh"].map(str::to_owned).to_vec();
    let free = host.witness(&["/bin/sleep", "600"]);
    host.write_config(&format!(
        r#"
[process.free]
command = {free}
ready = {{ mode = "spawned", after = "10ms" }}
heartbeat = {{ mode = "none" }}

[process.stuck]
command = ["/bin/sleep", "600"]
user = "games"
ready = {{ mode = "spawned", after = "10ms" }}
heartbeat = {{ mode = "none" }}
restart = {{ give_up = false, backoff = {{ min = "100ms", max = "200ms" }} }}
"#
    ));
    host.start();
    let before = host.ready("free.0");
    let killed = Instant::now();
    signal(before.pid.unwrap(), libc::SIGKILL);
    until("the other one runs again", || {
        let view = host.view("free.0")?;
        expect(view.state == "ready" && view.run > before.run, &view)
    });
    assert!(killed.elapsed() < LONGEST_LOOK_UP, "it waited for the other one: {:?}", killed.elapsed());

    let why = "looking up the user games does not come back";
    until("the stuck one says why", || {
        let told = host.events("stuck.0").into_iter().filter(|event| event.kind == "spawn-failed");
        let told: Vec<_> = told.filter_map(|event| event.detail).collect();
        expect(told.iter().any(|detail| detail.contains(why)), &told)
    });
    assert!(host.metric("bigbrother_spawn_failures_total", "step=\"stuck\"").unwrap() >= 1.0);
    assert_eq!(host.view("stuck.0").unwrap().last_exit.expect("an end").cause, "spawn");

    // The database answers again: first whoever still waits, with nothing, then in full.
    let target = host.agent_pid().to_string();
    let restored = Command::new("nsenter")
        .args(["--mount", "--target", &target, "umount", "-l", "/etc/passwd"])
        .status();
    assert!(restored.unwrap().success());
    until("the stuck one runs", || {
        drop(OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&passwd));
        let view = host.view("stuck.0")?;
        expect(view.state == "ready", &view)?;
        let owner = std::fs::metadata(format!("/proc/{}", view.pid.unwrap())).map_err(|e| e.to_string())?;
        expect((owner.uid(), owner.gid()) == (5, 60), (owner.uid(), owner.gid()))
    });
}

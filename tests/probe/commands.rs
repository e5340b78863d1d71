//! Commands that are asked.

use std::fs;
use std::path::Path;
use std::time::Duration;

use bigbrother::agent::probe::{ExecRequest, ProbeError, ProbeTarget};
use bigbrother::keeper::protocol::Account;

use super::asker::{Asker, SECOND, dead, state, wait_for};

/// `sh -c script` in `dir`, as the account.
fn exec(script: &str, dir: &Path, account: Option<Account>) -> ProbeTarget {
    ProbeTarget::Exec(ExecRequest {
        command: ["sh", "-c", script].map(String::from).to_vec(),
        env: vec!["PATH=/usr/bin:/bin".into(), "REGION=eu=1".into()],
        working_dir: dir.to_str().unwrap().into(),
        account,
        nice: 0,
    })
}

#[test]
fn a_command_is_judged_by_its_exit_code() {
    let (mut asker, dir) = (Asker::new(), tempfile::tempdir().unwrap());
    asker.ask(exec("exit 0", dir.path(), None), 5 * SECOND).unwrap();
    match asker.ask(
        exec("echo out; echo err >&2; printf '\\033[2J$REGION\\n'; exit 3", dir.path(), None),
        5 * SECOND,
    ) {
        Err(ProbeError::Exit { code: 3, output }) => assert_eq!(output, "out; err; [2J$REGION"),
        other => panic!("{other:?}"),
    }
    match asker.ask(exec("kill -SEGV $$", dir.path(), None), 5 * SECOND) {
        Err(ProbeError::Signalled { signal: 11, .. }) => {}
        other => panic!("{other:?}"),
    }
    // It closes its output long before it ends.
    let closed = asker.ask(exec("exec >&- 2>&-; sleep 0.3; exit 4", dir.path(), None), 5 * SECOND);
    assert!(matches!(closed, Err(ProbeError::Exit { code: 4, .. })), "{closed:?}");
    let ProbeTarget::Exec(request) = exec("", dir.path(), None) else { unreachable!() };
    let missing = ProbeTarget::Exec(ExecRequest { command: vec!["/no/such".into()], ..request });
    let reason = asker.ask(missing, SECOND).unwrap_err().reason();
    assert_eq!(reason, "cannot start \"/no/such\": No such file or directory (os error 2)");
}

#[test]
fn a_command_has_the_priority_of_its_process() {
    let (mut asker, dir) = (Asker::new(), tempfile::tempdir().unwrap());
    let ProbeTarget::Exec(request) = exec("nice; exit 1", dir.path(), None) else { unreachable!() };
    match asker.ask(ProbeTarget::Exec(ExecRequest { nice: 7, ..request }), 5 * SECOND) {
        Err(ProbeError::Exit { output, .. }) => assert_eq!(output, "7"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_command_has_its_environment_folder_and_session_only() {
    let (mut asker, dir) = (Asker::new(), tempfile::tempdir().unwrap());
    let script =
        "env | sort > env; readlink /proc/self/fd/0; pwd; ps -o pgid= -p $$ | tr -d ' '; echo $$; exit 1";
    let output = match asker.ask(exec(script, dir.path(), None), 5 * SECOND) {
        Err(ProbeError::Exit { output, .. }) => output,
        other => panic!("{other:?}"),
    };
    let lines: Vec<&str> = output.split("; ").collect();
    assert_eq!(lines[..2], ["/dev/null", dir.path().to_str().unwrap()]);
    assert_eq!(lines[2], lines[3], "it leads its own group");
    let env = fs::read_to_string(dir.path().join("env")).unwrap();
    let names: Vec<&str> = env.lines().filter_map(|l| l.split('=').next()).collect();
    assert!(env.contains("REGION=eu=1\n"), "{env}");
    assert!(names.iter().all(|n| ["PATH", "REGION", "PWD", "OLDPWD", "SHLVL", "_"].contains(n)), "{env}");
}

#[test]
fn a_command_runs_as_the_account() {
    assert!(nix::unistd::geteuid().is_root(), "this test must run as root: it becomes another user");
    let (mut asker, dir) = (Asker::new(), tempfile::tempdir().unwrap());
    let account = Account { uid: 65534, gid: 65533, groups: vec![60, 65533] };
    match asker.ask(exec("id -u; id -g; id -G; exit 1", Path::new("/"), Some(account)), 5 * SECOND) {
        Err(ProbeError::Exit { output, .. }) => assert_eq!(output, "65534; 65533; 65533 60"),
        other => panic!("{other:?}"),
    }
    drop(dir);
}

#[test]
fn output_is_bounded_but_read_to_the_end() {
    let (mut asker, dir) = (Asker::new(), tempfile::tempdir().unwrap());
    // 1 MiB: more than a pipe holds.
    match asker.ask(exec("head -c 1048576 /dev/zero | tr '\\0' x; exit 9", dir.path(), None), 10 * SECOND) {
        Err(ProbeError::Exit { code: 9, output }) => assert_eq!(output, "x".repeat(4096)),
        other => panic!("{other:?}"),
    }
}

fn pids(dir: &Path, count: usize) -> Vec<i32> {
    let mut pids = Vec::new();
    wait_for("all pids written", || {
        let text = fs::read_to_string(dir.join("pids")).unwrap_or_default();
        pids = text.lines().filter_map(|l| l.parse().ok()).collect();
        pids.len() == count
    });
    pids
}

#[test]
fn a_command_that_takes_too_long_dies_with_its_group() {
    let (mut asker, dir) = (Asker::new(), tempfile::tempdir().unwrap());
    let script = "trap '' TERM; sleep 1000 & echo $! >> pids; echo $$ >> pids; echo waiting; wait";
    match asker.ask(exec(script, dir.path(), None), 2 * SECOND) {
        Err(ProbeError::Unfinished { output, .. }) => assert_eq!(output, "waiting"),
        other => panic!("{other:?}"),
    }
    let pids = pids(dir.path(), 2);
    wait_for("dead", || dead(pids[0]));
    wait_for("reaped", || state(pids[1]).is_none());
}

#[test]
fn a_command_that_starts_too_late_is_ended_all_the_same() {
    let (mut asker, dir) = (Asker::new(), tempfile::tempdir().unwrap());
    let outcome = asker.ask(exec("sleep 1000", dir.path(), None), Duration::ZERO);
    assert!(matches!(outcome, Err(ProbeError::Unfinished { .. })), "{outcome:?}");
    wait_for("free again", || asker.ask(exec("exit 0", dir.path(), None), 5 * SECOND).is_ok());
}

#[test]
fn what_a_finished_command_leaves_behind_is_killed() {
    let (mut asker, dir) = (Asker::new(), tempfile::tempdir().unwrap());
    // The sleeper holds stdout open; the result must not wait for it.
    asker.ask(exec("sleep 1000 & echo $! >> pids; echo $$ >> pids", dir.path(), None), 10 * SECOND).unwrap();
    let pids = pids(dir.path(), 2);
    assert_eq!(state(pids[1]), None, "a zombie was left");
    wait_for("dead", || dead(pids[0]));
}

#[test]
fn an_instance_has_one_command_at_a_time() {
    let (mut asker, dir) = (Asker::new(), tempfile::tempdir().unwrap());
    let slow = asker.put("zone.1", exec("echo $$ >> pids; sleep 1000", dir.path(), None), 3 * SECOND);
    pids(dir.path(), 1);
    let refused = asker.put("zone.1", exec("echo $$ >> pids", dir.path(), None), SECOND);
    let result = asker.result(2 * SECOND);
    assert_eq!(result.asked, refused);
    assert!(matches!(result.outcome, Err(ProbeError::Underway)), "{:?}", result.outcome);
    let other = asker.put("zone.2", exec("exit 0", dir.path(), None), 2 * SECOND);
    assert_eq!(asker.result(3 * SECOND).asked, other, "another instance must not wait");
    assert_eq!(asker.result(4 * SECOND).asked, slow);
    wait_for("free again", || asker.ask_for("zone.1", exec("exit 0", dir.path(), None), SECOND).is_ok());
    assert_eq!(pids(dir.path(), 1).len(), 1, "the refused command never ran");
}

#[test]
fn nothing_is_left_when_the_prober_goes() {
    let (mut asker, dir) = (Asker::new(), tempfile::tempdir().unwrap());
    asker.put("zone.1", exec("echo $$ >> pids; sleep 1000", dir.path(), None), 600 * SECOND);
    let pid = pids(dir.path(), 1)[0];
    drop(asker.prober);
    wait_for("reaped", || state(pid).is_none());
}

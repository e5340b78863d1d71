//! `bigbrother dev` end to end: a real agent, a real keeper, real processes. Whatever happens, nothing is left.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// No step of these tests takes longer, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running demonstration; interrupted, and if need be killed, when dropped.
struct Dev {
    child: Child,
    lines: Receiver<String>,
    said: Vec<String>,
    folder: PathBuf,
    _parent: tempfile::TempDir,
}

impl Dev {
    /// One host, where the number does not matter.
    fn start(args: &[&str]) -> Dev {
        Dev::start_with(&[&["--hosts", "1"], args].concat())
    }

    /// Starts it in a temporary folder of the test's own, so that what is left can be seen.
    fn start_with(args: &[&str]) -> Dev {
        let parent = tempfile::tempdir().expect("a folder");
        let mut child = Command::new(env!("CARGO_BIN_EXE_bigbrother"))
            .arg("dev")
            .args(args)
            .env("TMPDIR", parent.path())
            .env_remove("BIGBROTHER_API")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary");
        let out = BufReader::new(child.stdout.take().expect("piped"));
        let (send, lines) = channel();
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        let mut dev = Dev { child, lines, said: Vec::new(), folder: PathBuf::new(), _parent: parent };
        let first = dev.until("starting a");
        dev.folder = PathBuf::from(first.rsplit_once(" in ").expect("a folder").1);
        dev
    }

    /// The next line that holds this.
    fn until(&mut self, wanted: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.said.push(line.clone());
                    if line.contains(wanted) {
                        return line;
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!("it never said {wanted:?}, but:\n{}", self.said.join("\n"));
                }
            }
        }
    }

    /// Runs another command against its agent.
    fn ask(&self, args: &[&str]) -> (Option<i32>, Value) {
        let output = Command::new(env!("CARGO_BIN_EXE_bigbrother"))
            .args(["--json", "--api", &format!("unix:{}/alpha/run/api.sock", self.folder.display())])
            .args(args)
            .output()
            .expect("the binary");
        let text = String::from_utf8_lossy(&output.stdout);
        let value = serde_json::from_str(&text)
            .unwrap_or_else(|e| panic!("{args:?}: {e}: {text} {}", String::from_utf8_lossy(&output.stderr)));
        (output.status.code(), value)
    }

    fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Sends it a signal and waits for its end; gives its exit code.
    fn end(&mut self, signal: Signal) -> Option<i32> {
        kill(Pid::from_raw(self.pid()), signal).expect("it lives");
        self.ended()
    }

    fn ended(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                self.said.extend(self.lines.iter());
                return status.code();
            }
            assert!(Instant::now() < deadline, "it does not end; it said:\n{}", self.said.join("\n"));
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Neither a process that mentions its folder nor the folder.
    fn assert_nothing_left(&self) {
        let folder = self.folder.display().to_string();
        let left: Vec<String> = std::fs::read_dir("/proc")
            .expect("proc")
            .filter_map(|e| std::fs::read(e.ok()?.path().join("cmdline")).ok())
            .map(|bytes| String::from_utf8_lossy(&bytes).replace('\0', " "))
            .filter(|line| line.contains(&folder))
            .collect();
        assert_eq!(left, Vec::<String>::new());
        assert!(!self.folder.exists(), "{folder} is left");
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_some()) {
            return;
        }
        kill(Pid::from_raw(self.pid()), Signal::SIGTERM).ok();
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline && self.child.try_wait().is_ok_and(|status| status.is_none()) {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn pids(list: &Value) -> Vec<i32> {
    let all = list.as_array().expect("an array");
    all.iter().map(|i| i["pid"].as_i64().unwrap_or_else(|| panic!("no pid: {i}")) as i32).collect()
}

fn lives(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

#[test]
fn dev_shows_a_hang_and_leaves_nothing_when_interrupted() {
    let mut dev = Dev::start(&["--zones", "2"]);
    dev.until("2 zone servers ready");
    let (_, before) = dev.ask(&["ps"]);
    dev.until("zone.1 is made to hang now");
    dev.until("zone.1     run");
    let back = dev.until("-- zone.1 is back");
    assert!(back.contains("after its hang was noticed"), "{back}");
    let (_, after) = dev.ask(&["ps"]);
    assert_eq!(before[0]["run"], after[0]["run"], "zone.0 was left alone");
    assert_ne!(before[1]["run"], after[1]["run"]);
    assert_eq!(after[1]["last_exit"]["cause"], "hang");
    assert_eq!(dev.end(Signal::SIGINT), Some(0), "{:?}", dev.said);
    assert!(!pids(&after).into_iter().any(lives), "a server is left");
    dev.assert_nothing_left();
}

#[test]
fn dev_ends_by_itself_and_leaves_nothing() {
    let mut dev = Dev::start(&["--zones", "1", "--no-demo-fault", "--for", "3"]);
    assert_eq!(dev.ended(), Some(0), "{:?}", dev.said);
    assert!(dev.said.iter().any(|line| line.contains("1 zone server ready")), "{:?}", dev.said);
    assert!(!dev.said.iter().any(|line| line.contains("made to hang")), "{:?}", dev.said);
    dev.assert_nothing_left();
}

#[test]
fn dev_as_json_is_an_event_a_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let ran = Command::new(env!("CARGO_BIN_EXE_bigbrother"))
        .args(["dev", "--json", "--hosts", "1", "--zones", "1", "--no-demo-fault", "--for", "1"])
        .env("TMPDIR", folder.path())
        .stdin(Stdio::null())
        .output()
        .expect("the binary");
    let (out, words) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    let read = |line| serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    let events: Vec<Value> = out.lines().map(read).collect();
    let ready = |event: &Value| event["kind"] == "ready" && event["instance"] == "zone.0";
    assert!(events.iter().any(ready) && events.iter().all(|event| event["seq"].is_u64()), "{out}");
    assert!(
        ran.status.success() && words.contains("nothing is left"),
        "words for people are beside it: {words}"
    );
}

/// A root folder with the program, what the linker needs for it, and no other file.
fn bare_root(program: &str) -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("a folder");
    let made = |path: &str| root.path().join(path.trim_start_matches('/'));
    for (folder, mode) in [("", 0o755), ("proc", 0o755), ("dev", 0o755), ("tmp", 0o1777)] {
        std::fs::create_dir_all(made(folder)).expect("a folder");
        std::fs::set_permissions(made(folder), std::fs::Permissions::from_mode(mode)).expect("ours");
    }
    std::fs::write(made("bigbrother"), "").expect("a file to mount on");
    let linked = Command::new("ldd").arg(program).output().expect("ldd, of libc-bin");
    let linked = String::from_utf8(linked.stdout).expect("text");
    for library in linked.split_whitespace().filter(|word| word.starts_with('/')) {
        let copy = made(library);
        std::fs::create_dir_all(copy.parent().expect("a folder")).expect("a folder");
        std::fs::copy(library, copy).expect("the library");
    }
    root
}

/// No other file, no account of that number, nobody's rights.
#[test]
fn dev_needs_nothing_but_the_binary_and_no_root() {
    let program = env!("CARGO_BIN_EXE_bigbrother");
    let root = bare_root(program);
    let script = "mount -t proc proc $0/proc && mount --bind /dev $0/dev && mount --bind $1 $0/bigbrother && \
                  exec chroot --userspec=54321:54321 $0 /bigbrother dev --zones 2 --no-demo-fault --for 2";
    let mark = format!("MARK={}", root.path().display());
    let ran = Command::new("unshare")
        .args(["--mount", "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", &mark, "sh", "-c", script])
        .args([root.path(), Path::new(program)])
        .stdin(Stdio::null())
        .output()
        .expect("unshare, of util-linux");
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success() && said.contains("2 zone servers ready, on 3 hosts"), "{ran:?}");
    let left = std::fs::read_dir(root.path().join("tmp")).expect("a folder").count();
    assert_eq!(left, 0, "files are left");
    let marked = |path: PathBuf| {
        std::fs::read(path).is_ok_and(|env| env.split(|b| *b == 0).any(|e| e == mark.as_bytes()))
    };
    let processes = std::fs::read_dir("/proc").expect("proc").flatten();
    let left: Vec<PathBuf> =
        processes.map(|e| e.path().join("environ")).filter(|path| marked(path.clone())).collect();
    assert_eq!(left, Vec::<PathBuf>::new());
}

#[test]
fn a_killed_agent_is_replaced_and_the_servers_play_on() {
    let mut dev = Dev::start(&["--zones", "2", "--no-demo-fault"]);
    let welcome = dev.until("2 zone servers ready");
    let (_, agent) = welcome.split_once("agent (pid ").expect("a pid");
    let agent: i32 = agent.split(')').next().expect("a pid").parse().expect("a number");
    let (_, before) = dev.ask(&["ps"]);
    kill(Pid::from_raw(agent), Signal::SIGKILL).expect("it lives");
    dev.until("the agent of alpha was killed by SIGKILL");
    let deadline = Instant::now() + PATIENCE;
    // The new agent listens a little later; until then the command exits with 3 and prints nothing.
    let after = loop {
        let output = Command::new(env!("CARGO_BIN_EXE_bigbrother"))
            .args(["ps", "--json", "--api", &format!("unix:{}/alpha/run/api.sock", dev.folder.display())])
            .output()
            .expect("the binary");
        match serde_json::from_slice::<Value>(&output.stdout) {
            Ok(list) if list.as_array().is_some_and(|l| l.iter().all(|i| i["state"] == "ready")) => {
                break list;
            }
            _ => assert!(Instant::now() < deadline, "{output:?}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(pids(&before), pids(&after));
    assert_eq!(dev.end(Signal::SIGTERM), Some(0), "{:?}", dev.said);
    assert!(!pids(&after).into_iter().any(lives), "a server is left");
    dev.assert_nothing_left();
}

#[test]
fn whoever_does_not_listen_is_ended_all_the_same() {
    let mut dev = Dev::start(&["--zones", "2", "--no-demo-fault"]);
    dev.until("2 zone servers ready");
    let (_, status) = dev.ask(&["status"]);
    let (_, list) = dev.ask(&["ps"]);
    let keeper = status["keeper"]["pid"].as_i64().expect("a keeper") as i32;
    let welcome = dev.said.last().expect("said").clone();
    let (_, agent) = welcome.split_once("agent (pid ").expect("a pid");
    let agent: i32 = agent.split(')').next().expect("a pid").parse().expect("a number");
    for pid in pids(&list).into_iter().chain([agent, keeper]) {
        kill(Pid::from_raw(pid), Signal::SIGSTOP).expect("it lives");
    }
    assert_eq!(dev.end(Signal::SIGTERM), Some(0), "{:?}", dev.said);
    assert!(!pids(&list).into_iter().chain([agent, keeper]).any(lives), "somebody is left");
    dev.assert_nothing_left();
}

#[test]
fn kill_tests_of_each_kind_come_back() {
    let mut dev = Dev::start(&["--zones", "3", "--no-demo-fault"]);
    dev.until("3 zone servers ready");
    for (signal, count) in [("KILL", "5"), ("SEGV", "3"), ("STOP", "2")] {
        let (code, view) = dev.ask(&["kill-test", "zone", "--count", count, "--signal", signal]);
        assert_eq!((code, &view["missed"]), (Some(0), &Value::from(0)), "{view}");
        let kills = view["kills"].as_array().expect("kills");
        assert!(kills.iter().all(|k| k["run"].as_u64() > k["run_before"].as_u64()), "{view}");
    }
    assert_eq!(dev.ask(&["restart", "zone"]).0, Some(0));
    assert_eq!(dev.ask(&["stop", "--all"]).0, Some(0));
    assert_eq!(dev.ask(&["start", "zone.1"]).0, Some(0));
    let (_, list) = dev.ask(&["ps"]);
    let states: Vec<&str> =
        list.as_array().expect("an array").iter().filter_map(|i| i["state"].as_str()).collect();
    assert_eq!(states, ["paused", "ready", "paused"]);
    assert_eq!(dev.end(Signal::SIGINT), Some(0), "{:?}", dev.said);
    dev.assert_nothing_left();
}

#[test]
fn a_host_that_is_lost_is_healed_before_your_eyes_and_comes_back() {
    let mut dev = Dev::start_with(&["--zones", "6"]);
    let welcome = dev.until("6 zone servers ready, on 3 hosts");
    assert!(welcome.contains("the primary is "), "{welcome}");
    dev.until("is back");
    let lost = dev.until("-- to show you: the host ");
    let lost =
        lost.split("the host ").nth(1).and_then(|rest| rest.split(',').next()).expect("a name").to_owned();
    let healed = dev.until("-- all 6 servers run again");
    assert!(healed.contains(&format!("after {lost} was lost")), "{healed}");
    dev.until(&format!("-- {lost} is switched on again"));
    assert_eq!(dev.end(Signal::SIGINT), Some(0), "{:?}", dev.said);
    dev.assert_nothing_left();
}

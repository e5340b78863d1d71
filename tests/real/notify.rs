//! Stock programs that speak sd_notify: redis-server, and systemd-networkd with its watchdog.

use std::fs;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::agent::{Host, alive, pid, require, signal, until};

const REDIS: &str = r#"
[process.redis]
command = ["/usr/bin/redis-server", "--supervised", "systemd", "--port", "{port.redis}", "--bind", "127.0.0.1",
    "--dir", "{data}", "--save", ""]
ports = { redis = "tcp" }
ready = { mode = "notify" }
heartbeat = { mode = "exec", command = ["/usr/bin/redis-cli", "-p", "{port.redis}", "ping"], interval = "500ms", timeout = "3s" }
"#;

fn redis() -> Host {
    require("/usr/bin/redis-server", "redis-server");
    require("/usr/bin/redis-cli", "redis-tools");
    Host::start(REDIS)
}

/// What redis itself says on its port.
fn redis_cli(instance: &Value, args: &[&str]) -> String {
    let port = instance["ports"]["redis"]["port"].to_string();
    let output =
        Command::new("/usr/bin/redis-cli").args(["-p", &port]).args(args).output().expect("redis-cli");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn redis_is_ready_by_notify_and_a_ping_that_gets_no_answer_is_a_hang() {
    let host = redis();
    let old = host.wait("redis.0", "ready and beating", |i| {
        i["state"] == "ready" && i["heartbeat"]["age_ms"].as_u64().is_some_and(|age| age < 3000)
    });
    assert_eq!(old["status"]["text"], "Ready to accept connections", "STATUS= is shown: {old}");
    assert_eq!(redis_cli(&old, &["ping"]), "PONG\n");
    signal(pid(&old), Signal::SIGSTOP);
    let new = host.ready_again(&old);
    assert_eq!(new["last_exit"]["cause"], "hang", "{new}");
    assert_eq!(new["ports"], old["ports"]);
    assert!(!alive(pid(&old)));
    assert_eq!(redis_cli(&new, &["ping"]), "PONG\n");
    // Probes that were left hanging on the stopped server are gone with it.
    let cli =
        |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim() == "redis-cli");
    until("no redis-cli of the old run is left", || {
        let asking: Vec<i32> = host.processes().into_iter().filter(cli).collect();
        if asking.len() <= 1 { Ok(()) } else { Err(format!("{asking:?}")) }
    });
}

/// Gives up its account before it says a word, as many daemons do; then says all over sd_notify, and hello on the
/// process socket.
const DROPPER: &str = r#"
import json, os, socket, time
os.setgroups([]); os.setgid(65534); os.setuid(65534)
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.setblocking(False)
notify.sendto(b"READY=1\nSTATUS=I am nobody %d" % os.getuid(), os.environ["NOTIFY_SOCKET"])
agent = socket.socket(socket.AF_UNIX)
agent.connect(os.environ["BIGBROTHER_SOCKET"])
agent.sendall(b'{"jsonrpc":"2.0","id":1,"method":"hello","params":{"client":"dropper"}}\n')
welcome = json.loads(agent.makefile().readline())
notify.sendto(b"STATUS=welcomed as %s" % welcome["result"]["instance"].encode(), os.environ["NOTIFY_SOCKET"])
beats = 0
while True:
    notify.sendto(b"WATCHDOG=1", os.environ["NOTIFY_SOCKET"])
    beats += 1
    if beats == 40: notify.sendto(b"STATUS=40 beats", os.environ["NOTIFY_SOCKET"])
    time.sleep(0.1)
"#;

#[test]
fn a_program_that_gave_up_its_account_still_belongs_to_its_instance() {
    let mut host = Host::prepare(&format!(
        "[process.dropper]\n{}ready = {{ mode = \"notify\" }}\n\
         heartbeat = {{ mode = \"notify\", interval = \"100ms\", timeout = \"2s\" }}\n",
        crate::python(DROPPER)
    ));
    // The way to the sockets must be open to nobody; what keeps others out is that they do not know it.
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(host.folder(), fs::Permissions::from_mode(0o755)).expect("a folder");
    host.start_agent();
    assert!(host.cgroup().is_some(), "this test needs a mounted cgroup v2");
    let ready = host.ready("dropper.0");
    let later =
        host.wait("dropper.0", "beating for longer than its timeout", |i| i["status"]["text"] == "40 beats");
    assert_eq!((&later["run"], &later["state"]), (&ready["run"], &"ready".into()), "{}", host.story());
    assert!(later["heartbeat"]["age_ms"].as_u64().is_some_and(|age| age < 2000), "{later}");
    signal(pid(&later), Signal::SIGSTOP);
    let next = host.ready_again(&later);
    assert_eq!(next["last_exit"]["cause"], "hang", "{next}");
}

#[test]
fn redis_says_that_it_stops_and_ends_cleanly() {
    let host = redis();
    let instance = host.ready("redis.0");
    host.ok(&["stop", "redis"]);
    let now = host.instance("redis.0");
    assert_eq!(now["last_exit"]["cause"], "stop", "{now}");
    assert_eq!(now["last_exit"]["code"], 0, "{now}");
    assert!(!alive(pid(&instance)));
    assert_eq!(host.in_cgroup(), [0; 0]);
    // Ended by itself it says STOPPING=1 first, and that is no stop by an operator: it comes back.
    host.ok(&["start", "redis"]);
    let old = host.ready("redis.0");
    redis_cli(&old, &["shutdown"]);
    let new = host.ready_again(&old);
    assert_eq!((&new["last_exit"]["cause"], &new["last_exit"]["code"]), (&"exit".into(), &0.into()), "{new}");
    let events = host.events("redis.0");
    let said = events.iter().any(|e| e["kind"] == "stopping" && e["run"] == old["run"]);
    assert!(said, "STOPPING=1 of run {} is not in {events:#?}", old["run"]);
}

/// A network namespace of the test's own.
struct Namespace(String);

impl Namespace {
    fn make() -> Namespace {
        require("/usr/sbin/ip", "iproute2");
        require("/lib/systemd/systemd-networkd", "systemd");
        let name = format!("bb-real-{}", std::process::id());
        let namespace = Namespace(name);
        namespace.ip("add");
        // networkd gives up root for its own account. `ip netns exec` lays these files over /etc, so that it
        // stays the account that the notify socket belongs to.
        let passwd = fs::read_to_string("/etc/passwd").expect("passwd");
        let lines = passwd.lines().filter(|line| !line.starts_with("systemd-network:"));
        let passwd: String = lines.map(|line| format!("{line}\n")).collect();
        let folder = namespace.etc();
        fs::create_dir_all(&folder).expect("a folder");
        let own = "systemd-network:x:0:0::/:/usr/sbin/nologin\n";
        fs::write(format!("{folder}/passwd"), passwd + own).expect("passwd");
        namespace
    }

    fn etc(&self) -> String {
        format!("/etc/netns/{}", self.0)
    }

    fn ip(&self, verb: &str) {
        let output = Command::new("/usr/sbin/ip").args(["netns", verb, &self.0]).output().expect("ip");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ip netns {verb} (needs root): {said}");
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        fs::remove_dir_all(self.etc()).ok();
        // Empty unless somebody else uses it.
        fs::remove_dir("/etc/netns").ok();
        Command::new("/usr/sbin/ip").args(["netns", "del", &self.0]).status().ok();
    }
}

#[test]
fn networkd_beats_by_its_watchdog_and_its_silence_is_a_hang() {
    let namespace = Namespace::make();
    // It gets a /run/systemd of its own, so that it does not write into that of this machine.
    let host = Host::start(&format!(
        r#"
[process.networkd]
command = ["/usr/sbin/ip", "netns", "exec", "{}", "/bin/sh", "-c",
    "mount -t tmpfs tmpfs /run/systemd && exec /lib/systemd/systemd-networkd"]
ready = {{ mode = "notify" }}
heartbeat = {{ mode = "notify", interval = "1s", timeout = "2s" }}
"#,
        namespace.0
    ));
    let beating = |run: Option<&Value>| {
        host.wait("networkd.0", "ready and beating", |i| {
            let age = i["heartbeat"]["age_ms"].as_u64();
            i["state"] == "ready" && run.is_none_or(|run| i["run"] != *run) && age.is_some_and(|a| a < 2000)
        })
    };
    let old = beating(None);
    assert_eq!(old["heartbeat"]["mode"], "notify");
    assert_eq!(old["status"]["text"], "Processing requests...", "{old}");
    // Its beats, every 1.5 s or less, keep it alive for longer than the timeout; the age falls with each.
    let mut ages = Vec::new();
    until("a later beat of the same run", || {
        let now = host.instance("networkd.0");
        assert_eq!(now["run"], old["run"], "it was restarted although it beats");
        ages.push(now["heartbeat"]["age_ms"].as_u64().expect("an age"));
        let beats = ages.windows(2).filter(|pair| pair[1] < pair[0]).count();
        if beats >= 3 { Ok(()) } else { Err(format!("{ages:?}")) }
    });
    let main = pid(&old);
    assert_eq!(fs::read_to_string(format!("/proc/{main}/comm")).expect("alive").trim(), "systemd-network");
    signal(main, Signal::SIGSTOP);
    let new = beating(Some(&old["run"]));
    assert_eq!(new["last_exit"]["cause"], "hang", "{new}");
    assert!(!alive(main));
    let events = host.events("networkd.0");
    assert!(events.iter().any(|e| e["kind"] == "hang" && e["run"] == old["run"]), "{events:#?}");
}

//! Small processes for a host under test that write down when they run, so that none runs twice unseen.

use std::fs;
use std::path::Path;

use super::Host;

/// Runs a program as one run of its instance: it holds a lock and writes down its pid. A second run at the
/// same time cannot have the lock, and writes that down instead.
const WITNESS: &str = r#"
exec 9>>"$1/$BIGBROTHER_INSTANCE.lock"
if ! flock -n 9; then echo "DOUBLE $$" >> "$1/$BIGBROTHER_INSTANCE.runs"; exit 77; fi
echo "start $$" >> "$1/$BIGBROTHER_INSTANCE.runs"
shift
exec "$@"
"#;

/// Beats over sd_notify with blocking sends, ten times a second, and writes down when it did.
const BEATER: &str = r#"
import os, socket, sys, time
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
ticks = os.open(sys.argv[1] + "/" + os.environ["BIGBROTHER_INSTANCE"] + ".ticks",
                os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
while True:
    try:
        # READY each time: one that lies unread in a socket dies with agent and keeper.
        notify.sendto(b"READY=1\nWATCHDOG=1", os.environ["NOTIFY_SOCKET"])
    except OSError:
        pass
    os.write(ticks, b"%f\n" % time.monotonic())
    time.sleep(0.1)
"#;

/// Puts the programs where the processes find them.
pub fn write(root: &Path) {
    fs::write(root.join("witness"), WITNESS).unwrap();
    fs::write(root.join("beater"), BEATER).unwrap();
}

impl Host {
    /// The program with which a process begins that is to be seen when it runs twice.
    pub fn witness(&self, command: &[&str]) -> String {
        let root = self.root.to_str().unwrap();
        let mut words = vec!["/bin/sh".to_owned(), format!("{root}/witness"), root.to_owned()];
        words.extend(command.iter().map(|word| (*word).to_owned()));
        format!("{words:?}")
    }

    /// A witnessed process that beats over sd_notify.
    pub fn beater(&self) -> String {
        let root = self.root.to_str().unwrap();
        self.witness(&["/usr/bin/python3", "-u", &format!("{root}/beater"), root])
    }

    /// A witnessed demo zone.
    pub fn zone(&self, port: &str) -> String {
        let program = env!("CARGO_BIN_EXE_bigbrother");
        self.witness(&[program, "demo-zone", "--port", port, "--name", "{instance}"])
    }

    /// What the witness of an instance wrote: the pids that ran, in order. Panics if two ran at once.
    pub fn witnessed(&self, instance: &str) -> Vec<i32> {
        let text = fs::read_to_string(self.root.join(format!("{instance}.runs"))).unwrap_or_default();
        assert!(!text.contains("DOUBLE"), "{instance} ran twice at once:\n{text}");
        text.lines().map(|line| line.strip_prefix("start ").unwrap().parse().unwrap()).collect()
    }
}

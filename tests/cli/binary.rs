//! The real binary, run with a deadline.

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::fake::{Fake, instance};

/// No command of these tests takes longer, even on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ran {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("no JSON ({e}): {self:?}"))
    }
}

pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bigbrother"));
    for name in ["BIGBROTHER_API", "BIGBROTHER_SOCKET", "COLUMNS", "NO_COLOR"] {
        command.env_remove(name);
    }
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Waits for the end of a command, with a deadline.
pub fn finish(mut child: Child) -> Ran {
    let out = read(child.stdout.take().expect("piped"));
    let err = read(child.stderr.take().expect("piped"));
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("our child") {
            let (out, err) = (out.join().expect("read"), err.join().expect("read"));
            return Ran { code: status.code(), signal: status.signal(), out, err };
        }
        if began.elapsed() > PATIENCE {
            child.kill().expect("our child");
            panic!("it does not end; it said {:?} and {:?}", out.join(), err.join());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn read(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = String::new();
        from.read_to_string(&mut text).expect("text");
        text
    })
}

pub fn run(args: &[&str]) -> Ran {
    finish(command(args).spawn().expect("the binary"))
}

/// Runs a command against a fake agent.
pub fn ask(fake: &Fake, args: &[&str]) -> Ran {
    let mut command = command(args);
    command.env("BIGBROTHER_API", fake.address()).current_dir(fake.folder());
    finish(command.spawn().expect("the binary"))
}

/// A fake agent with two ready zones.
pub fn zones() -> Fake {
    Fake::start(vec![instance("zone.0", "ready", 1), instance("zone.1", "ready", 2)])
}

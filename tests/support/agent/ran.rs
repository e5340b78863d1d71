//! Commands run to their end, with a deadline.

use std::io::Read;
use std::process::Child;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::PATIENCE;

/// A finished command.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// What it printed; it must have succeeded.
    pub fn json(&self) -> Value {
        assert_eq!(self.code, Some(0), "{self:?}");
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("no JSON ({e}): {self:?}"))
    }
}

/// Waits for the end of a command, and kills one that does not end.
pub fn finish(mut child: Child, args: &[&str]) -> Ran {
    let read = |mut from: Box<dyn Read + Send>| {
        std::thread::spawn(move || {
            let mut text = String::new();
            from.read_to_string(&mut text).expect("text");
            text
        })
    };
    let out = read(Box::new(child.stdout.take().expect("piped")));
    let err = read(Box::new(child.stderr.take().expect("piped")));
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("our child") {
            break status;
        }
        if began.elapsed() > PATIENCE * 2 {
            child.kill().expect("our child");
            panic!("{args:?} does not end; it said {:?} and {:?}", out.join(), err.join());
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    Ran { code: status.code(), out: out.join().expect("read"), err: err.join().expect("read") }
}

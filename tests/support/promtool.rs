//! Prometheus' own judgement of what it is given.

use std::io::Write;
use std::process::{Command, Stdio};

/// The text is metrics, and promtool has nothing to say about them.
pub fn check_metrics(text: &str) {
    let mut tool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is needed: apt-get install --no-install-recommends prometheus");
    tool.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("it reads");
    let said = tool.wait_with_output().expect("it ends");
    let complaints =
        format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    assert!(said.status.success() && complaints.is_empty(), "promtool: {complaints}\n{text}");
}

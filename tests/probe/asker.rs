//! A prober as the supervision loop has it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};
use std::{fs, thread};

use bigbrother::agent::probe::{Answer, ProbeError, ProbeResult, ProbeTarget, Prober, Question};
use bigbrother::keeper::protocol::RunId;
use bigbrother::spec::QueryProtocol;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;

pub const SECOND: Duration = Duration::from_secs(1);

/// A prober as the supervision loop has it: results come back over a channel.
pub struct Asker {
    pub main: Runtime,
    pub prober: Prober,
    pub results: mpsc::Receiver<ProbeResult>,
    pub asked: u64,
}

impl Asker {
    pub fn new() -> Self {
        let main = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (sender, results) = mpsc::channel(64);
        Asker { prober: Prober::new(main.handle().clone(), sender), main, results, asked: 0 }
    }

    pub fn put(&mut self, instance: &str, probe: ProbeTarget, timeout: Duration) -> u64 {
        self.asked += 1;
        let instance = instance.parse().unwrap();
        self.prober.ask(Question { instance, run: RunId(7), asked: self.asked, probe, timeout });
        self.asked
    }

    pub fn result(&mut self, within: Duration) -> ProbeResult {
        let next = async { tokio::time::timeout(within, self.results.recv()).await };
        let result = self.main.block_on(next);
        result.unwrap_or_else(|_| panic!("no result within {within:?}")).unwrap()
    }

    /// One question; its result must come within the timeout and a second for a busy machine.
    pub fn ask(&mut self, probe: ProbeTarget, timeout: Duration) -> Result<Answer, ProbeError> {
        self.ask_for("zone.3", probe, timeout)
    }

    pub fn ask_for(
        &mut self,
        instance: &str,
        probe: ProbeTarget,
        timeout: Duration,
    ) -> Result<Answer, ProbeError> {
        let asked = self.put(instance, probe, timeout);
        let result = self.result(timeout + SECOND);
        let of = (result.instance.to_string(), result.run, result.asked);
        assert_eq!(of, (instance.to_owned(), RunId(7), asked));
        result.outcome
    }

    /// Asks until the server answers.
    pub fn answer(&mut self, probe: &ProbeTarget) -> Answer {
        let deadline = Instant::now() + 20 * SECOND;
        loop {
            match self.ask(probe.clone(), 2 * SECOND) {
                Ok(answer) => return answer,
                Err(error) if Instant::now() > deadline => panic!("no answer in 20 s: {}", error.reason()),
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

pub fn query(protocol: QueryProtocol, address: SocketAddr) -> ProbeTarget {
    ProbeTarget::Query { protocol, address }
}

pub fn wait_for(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + 10 * SECOND;
    while !reached() {
        assert!(Instant::now() < deadline, "after 10 s: not {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The state letter of /proc/PID/stat; `None` when there is no such process.
pub fn state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Gone, or a zombie of a parent that is not ours.
pub fn dead(pid: i32) -> bool {
    matches!(state(pid), None | Some('Z'))
}

//! Looking up what may not answer: accounts, programs, folders.
//!
//! Owns the threads that wait for user databases, network file systems and disks: one as a rule, and another
//! whenever all hang, that is, when none comes back while errands lie untaken. Those that are slow get help late: the
//! folders of hundreds of instances lie in the same one, where makers wait for each other, and spin. So what does not
//! answer holds up the instances that need it, and nobody else. The
//! supervision loop sends somebody ([`Lookups::send`]) and hears of it by message; what was found is kept by
//! [`super::resolve`]. Decides nothing, and gives up nothing: how long is waited is the loop's affair.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::config::HostPolicy;
use crate::host::Moment;
use crate::keeper::protocol::Account;

mod machine;

pub use machine::{LIBRARIES, LookUpError, PATH};

/// An errand that nobody has taken for this long, while nobody came back, finds all threads hanging: there is to be one
/// more.
const UNTAKEN: Duration = Duration::from_millis(20);
/// One that nobody has taken for this long waits behind too many that are slow: there is to be one more as well. Not one
/// is to wait for as long as an order does.
const LATE: Duration = Duration::from_millis(500);
/// The most threads. Beyond it errands wait for one to come back.
const MOST_THREADS: usize = 64;
/// A thread beyond the first ends when it had nothing to do for this long.
const IDLE: Duration = Duration::from_secs(10);

/// What is to be looked up for a command, in one go.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Errand {
    /// A folder of the account's to be made; `None`: it is known to be there. First, and not a path: errands are
    /// compared by the hundred when a host starts, and paths are compared part by part.
    pub folder: Option<OsString>,
    /// As whom it runs; `None`: as the agent.
    pub user: Option<String>,
    /// The group, where it is not the user's own.
    pub group: Option<String>,
    /// An absolute path, or a name to search for.
    pub program: String,
    /// Where its environment has libraries looked for: values of [`LIBRARIES`]. Empty where no policy asks.
    pub libraries: Vec<String>,
    /// What the host allows.
    pub policy: Arc<HostPolicy>,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Numbers and home folder; `None`: the agent's own account.
    pub account: Option<(Account, String)>,
    /// Absolute path.
    pub program: String,
}

/// How far an errand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// No thread has taken it yet.
    Untaken,
    /// Asking the user database.
    Account,
    /// Looking for the program.
    Program,
    /// Making the folder.
    Folder,
}

/// The present [`Step`] of an errand, to be seen from outside.
#[derive(Debug, Default)]
pub struct Progress(AtomicU8);

impl Progress {
    /// The next step begins.
    pub fn begin(&self, step: Step) {
        self.0.store(step as u8, Ordering::Relaxed);
    }

    fn step(&self) -> Step {
        let steps = [Step::Account, Step::Program, Step::Folder];
        let now = self.0.load(Ordering::Relaxed);
        steps.into_iter().find(|step| *step as u8 == now).unwrap_or(Step::Untaken)
    }
}

/// An errand that came back.
#[derive(Debug)]
pub struct Answer {
    /// What was asked.
    pub errand: Errand,
    /// What was found.
    pub result: Result<Found, LookUpError>,
}

/// How errands are run; another one in tests.
pub type LookUp = dyn Fn(&Errand, &Progress) -> Result<Found, LookUpError> + Send + Sync;

/// Errands under way, and the threads that run them.
pub struct Lookups {
    shared: Arc<Shared>,
    under_way: BTreeMap<Errand, Trip>,
    /// When somebody came back last, or another thread was to take what lay there.
    moved: Moment,
    /// When that was to be, last.
    helped: Moment,
}

struct Trip {
    sent: Moment,
    progress: Arc<Progress>,
}

/// What the threads share.
struct Shared {
    desk: Mutex<Desk>,
    news: Condvar,
    answers: mpsc::Sender<Answer>,
    look_up: Box<LookUp>,
}

#[derive(Default)]
struct Desk {
    errands: VecDeque<(Errand, Arc<Progress>)>,
    threads: usize,
    /// Of these, those that have nothing to do. Whoever is on an errand looks for the next one by itself.
    waiting: usize,
    closed: bool,
}

impl Lookups {
    /// Nobody is sent yet; who comes back speaks into this channel.
    pub fn new(answers: mpsc::Sender<Answer>) -> Self {
        Self::with(answers, Box::new(machine::look_up))
    }

    fn with(answers: mpsc::Sender<Answer>, look_up: Box<LookUp>) -> Self {
        let shared = Shared { desk: Mutex::default(), news: Condvar::new(), answers, look_up };
        Lookups { shared: Arc::new(shared), under_way: BTreeMap::new(), moved: Moment(0), helped: Moment(0) }
    }

    /// Sends somebody, unless somebody is under way with the same errand.
    pub fn send(&mut self, errand: Errand, now: Moment) {
        if self.under_way.contains_key(&errand) {
            return;
        }
        let progress = Arc::new(Progress::default());
        self.under_way.insert(errand.clone(), Trip { sent: now, progress: progress.clone() });
        let mut desk = self.shared.desk();
        desk.errands.push_back((errand, progress));
        if desk.threads == 0 {
            self.shared.hire(desk);
        } else if desk.waiting > 0 {
            self.shared.news.notify_one();
        }
    }

    /// An answer came: the errand may be sent again.
    pub fn came_back(&mut self, errand: &Errand, now: Moment) {
        self.under_way.remove(errand);
        self.moved = now;
    }

    /// Where an errand is stuck, in words.
    pub fn whereabouts(&self, errand: &Errand) -> String {
        let step = self.under_way.get(errand).map_or(Step::Untaken, |trip| trip.progress.step());
        match step {
            Step::Untaken => "whoever looks things up".to_owned(),
            Step::Account => {
                format!("looking up the user {}", errand.user.as_deref().unwrap_or("of the agent"))
            }
            Step::Program => format!("looking for the program {}", errand.program),
            Step::Folder => {
                format!("making the folder {}", errand.folder.as_deref().unwrap_or("".as_ref()).display())
            }
        }
    }

    /// When [`Lookups::tend`] is next needed.
    pub fn next_due(&self) -> Option<Moment> {
        let untaken = self.under_way.values().filter(|trip| trip.progress.step() == Step::Untaken);
        let oldest = untaken.map(|trip| trip.sent).min()?;
        Some(oldest.max(self.moved).after(UNTAKEN).min(oldest.max(self.helped).after(LATE)))
    }

    /// One more thread where errands lie untaken.
    pub fn tend(&mut self, now: Moment) {
        if self.next_due().is_none_or(|due| now < due) {
            return;
        }
        // The new thread, too, is given its time.
        (self.moved, self.helped) = (now, now);
        let desk = self.shared.desk();
        if desk.threads < MOST_THREADS {
            self.shared.hire(desk);
        }
    }
}

impl Drop for Lookups {
    fn drop(&mut self) {
        // One that hangs ends with the process.
        self.shared.desk().closed = true;
        self.shared.news.notify_all();
    }
}

impl Shared {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hire(self: &Arc<Self>, mut desk: MutexGuard<'_, Desk>) {
        let shared = self.clone();
        let thread = std::thread::Builder::new().name("look-up".to_owned());
        match thread.spawn(move || shared.serve()) {
            Ok(_) => desk.threads += 1,
            Err(error) => tracing::error!(%error, "cannot start a thread for look-ups"),
        }
    }

    fn serve(&self) {
        while let Some((errand, progress)) = self.next() {
            progress.begin(Step::Account);
            let result = (self.look_up)(&errand, &progress);
            // The loop that is gone has no use for it.
            if self.answers.blocking_send(Answer { errand, result }).is_err() {
                return;
            }
        }
    }

    /// The next errand; `None`: this thread is not needed any more.
    fn next(&self) -> Option<(Errand, Arc<Progress>)> {
        let mut desk = self.desk();
        loop {
            if desk.closed {
                return None;
            }
            if let Some(errand) = desk.errands.pop_front() {
                return Some(errand);
            }
            desk.waiting += 1;
            let timed_out;
            (desk, timed_out) = if desk.threads == 1 {
                (self.news.wait(desk).unwrap_or_else(PoisonError::into_inner), false)
            } else {
                let waited = self.news.wait_timeout(desk, IDLE).unwrap_or_else(PoisonError::into_inner);
                (waited.0, waited.1.timed_out())
            };
            desk.waiting -= 1;
            if timed_out && desk.threads > 1 && desk.errands.is_empty() {
                desk.threads -= 1;
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc as std_mpsc;

    use super::*;
    use crate::agent::supervise::moment;

    fn errand(program: &str) -> Errand {
        Errand { program: program.to_owned(), ..Errand::default() }
    }

    /// Look-ups of which "hang" comes back when it is told to.
    fn lookups() -> (Lookups, mpsc::Receiver<Answer>, std_mpsc::Sender<()>) {
        let (answers, heard) = mpsc::channel(8);
        let (release, held) = std_mpsc::channel();
        let held = Mutex::new(held);
        let look_up = move |errand: &Errand, progress: &Progress| {
            if errand.program == "hang" {
                progress.begin(Step::Program);
                held.lock().unwrap().recv_timeout(Duration::from_secs(60)).expect("released");
            }
            Ok(Found { account: None, program: format!("/bin/{}", errand.program) })
        };
        (Lookups::with(answers, Box::new(look_up)), heard, release)
    }

    /// Tends as the loop would, until an answer comes.
    fn answer(lookups: &mut Lookups, heard: &mut mpsc::Receiver<Answer>) -> Answer {
        let until = moment().after(Duration::from_secs(30));
        loop {
            if let Ok(answer) = heard.try_recv() {
                lookups.came_back(&answer.errand, moment());
                return answer;
            }
            assert!(moment() < until, "no answer; under way: {:?}", lookups.under_way.keys());
            lookups.tend(moment());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn one_that_hangs_holds_up_no_other_and_says_where_it_is() {
        let (mut lookups, mut heard, release) = lookups();
        lookups.send(errand("hang"), moment());
        lookups.send(errand("hang"), moment());
        lookups.send(errand("ls"), moment());
        let answer_of_ls = answer(&mut lookups, &mut heard);
        assert_eq!(answer_of_ls.errand, errand("ls"));
        assert_eq!(answer_of_ls.result.unwrap().program, "/bin/ls");
        assert_eq!(lookups.whereabouts(&errand("hang")), "looking for the program hang");
        assert_eq!(lookups.shared.desk().threads, 2);
        assert_eq!(lookups.next_due(), None, "all are taken");
        release.send(()).unwrap();
        assert_eq!(answer(&mut lookups, &mut heard).errand, errand("hang"));
        assert!(lookups.under_way.is_empty(), "the same errand was sent once");
        assert!(lookups.shared.desk().errands.is_empty());
    }

    #[test]
    fn one_that_comes_back_again_and_again_gets_no_help() {
        let (mut lookups, mut heard, release) = lookups();
        let hang = |at| Errand { folder: Some(format!("{at}").into()), ..errand("hang") };
        let start = moment();
        (0..4).for_each(|at| lookups.send(hang(at), start));
        let threads = |lookups: &Lookups| lookups.shared.desk().threads;
        let untaken = |lookups: &Lookups| {
            lookups.under_way.values().filter(|trip| trip.progress.step() == Step::Untaken).count()
        };
        // Slow: most of the time that makes one that hangs.
        let at = |round: u32| start.after((UNTAKEN - Duration::from_millis(1)) * round);
        for round in 1..=3 {
            lookups.tend(at(round));
            assert_eq!(threads(&lookups), 1, "round {round}");
            release.send(()).unwrap();
            let answer = heard.blocking_recv().expect("an answer");
            lookups.came_back(&answer.errand, at(round));
            while untaken(&lookups) != 3 - round as usize {
                assert!(moment() < start.after(Duration::from_secs(30)), "round {round}: not taken");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        assert_eq!(lookups.next_due(), None, "the last is taken");
        lookups.send(errand("ls"), start);
        lookups.tend(at(3).after(UNTAKEN));
        assert_eq!(threads(&lookups), 2, "nobody has come back since");
        release.send(()).unwrap();
    }

    #[test]
    fn the_last_thread_waits_for_errands_for_as_long_as_it_takes() {
        let (mut lookups, mut heard, _release) = lookups();
        let until = moment().after(Duration::from_secs(30));
        for program in ["ls", "cat"] {
            lookups.send(errand(program), moment());
            // Without `tend`, which would help with another thread.
            while heard.try_recv().map(|answer| answer.errand) != Ok(errand(program)) {
                assert!(moment() < until, "{program} is not looked up");
                std::thread::sleep(Duration::from_millis(1));
            }
            lookups.came_back(&errand(program), moment());
            while lookups.shared.desk().waiting != 1 {
                assert!(moment() < until, "after {program}: it does not wait");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        assert_eq!(lookups.shared.desk().threads, 1);
    }

    #[test]
    fn one_that_nobody_takes_for_long_behind_slow_ones_gets_help() {
        let (mut lookups, _heard, release) = lookups();
        let start = moment();
        let hangs =
            ["a", "b", "c", "d"].map(|folder| Errand { folder: Some(folder.into()), ..errand("hang") });
        hangs.into_iter().for_each(|hang| lookups.send(hang, start));
        let mut threads = |after: Duration| {
            let now = start.after(after);
            // Another one has just come back.
            lookups.came_back(&errand("ls"), now);
            lookups.tend(now);
            lookups.shared.desk().threads
        };
        let short = Duration::from_millis(1);
        assert_eq!([LATE - short, LATE, LATE * 2 - short, LATE * 2].map(&mut threads), [1, 2, 2, 3]);
        (0..4).for_each(|_| release.send(()).unwrap());
    }
}

//! What the state costs at 500 hosts x 100 instances: a batch of events after the last state went out, a
//! snapshot, what one host wants, and the memory of an entry. `cargo bench --bench state` prints the median and
//! the worst of 21.

#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bigbrother::host::reconcile::{Grounds, wants};
use bigbrother::keeper::protocol::RunId;
use bigbrother::spec::fingerprint::SpecHash;
use bigbrother::spec::{HostName, InstanceId, Protocol};
use bigbrother::state::{
    Command, Entry, Envelope, Event, EventKind, HostFacts, PlaceChange, Placement, SharedMap, State,
};

const HOSTS: u64 = 500;
const PROCESSES: u64 = 100;
const EACH: u64 = 500;
const BATCH: u64 = 64;
const TRIALS: u64 = 21;

static HELD: AtomicUsize = AtomicUsize::new(0);

/// Counts the bytes that are in use.
struct Counting;

// SAFETY: all is done by the system's allocator; beside that a number is counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps to the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps to the contract of `dealloc`, and `alloc` gave what `System` gave.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn host(number: u64) -> HostName {
    format!("host-{number:03}").parse().unwrap()
}

fn instance(number: u64) -> InstanceId {
    format!("p{:02}.{}", number / EACH, number % EACH).parse().unwrap()
}

fn take(state: &mut State, command: Command) {
    state.apply(&Envelope { stamp_ms: 1, command }).unwrap();
}

fn ports() -> BTreeMap<String, (Protocol, u16)> {
    BTreeMap::from([("game".to_owned(), (Protocol::Udp, 27015))])
}

/// Every instance is placed and runs.
fn cluster() -> State {
    let context = bigbrother::config::Context { hostname: "a".to_owned(), host_override: None };
    let process = |n| format!("[process.p{n:02}]\ncommand = [\"/bin/p\"]\ncount = {EACH}\n");
    let text: String = (0..PROCESSES).map(process).collect();
    let spec =
        bigbrother::config::parse(&text, "state.toml", &context).unwrap_or_else(|_| panic!("{text}")).spec;
    let mut state = State::default();
    take(&mut state, Command::ApplySpec { spec, expected_revision: None });
    for number in 0..HOSTS {
        let facts = HostFacts {
            machine_id: number.to_string(),
            address: format!("10.0.{}.{}", number / 250, number % 250),
            ..HostFacts::default()
        };
        take(&mut state, Command::JoinHost { host: host(number), facts });
    }
    let hash = state.hash_of(&"p00".parse().unwrap()).unwrap();
    let put = |n| PlaceChange::Put { instance: instance(n), host: host(n % HOSTS), hash };
    let changes = (0..PROCESSES * EACH).map(put).collect();
    let based_on = state.basis;
    take(&mut state, Command::Place { based_on, changes });
    for number in 0..HOSTS {
        let mine = (0..PROCESSES * EACH).filter(|n| n % HOSTS == number);
        let started = |n| Event {
            instance: instance(n),
            run: RunId(n + 1),
            kind: EventKind::Started { hash, ports: ports() },
        };
        tell(&mut state, number, mine.map(started).collect());
    }
    assert_eq!(state.directory.len(), (PROCESSES * EACH) as usize);
    state
}

fn tell(state: &mut State, number: u64, events: Vec<Event>) {
    let name = host(number);
    let (incarnation, first_seq) = (state.hosts[&name].incarnation, state.hosts[&name].last_seq + 1);
    take(state, Command::Events { host: name, incarnation, first_seq, events });
}

fn timed<T>(spans: &mut Vec<Duration>, what: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let made = what();
    spans.push(begun.elapsed());
    made
}

fn report(what: &str, mut spans: Vec<Duration>) {
    spans.sort();
    println!("{what}: median {:.1?}, worst {:.1?}", spans[spans.len() / 2], spans[spans.len() - 1]);
}

fn weigh<T>(what: &str, make: impl FnOnce() -> T) {
    let before = HELD.load(Ordering::Relaxed);
    let made = make();
    let held = HELD.load(Ordering::Relaxed) - before;
    println!("{what}: {} bytes", held / (PROCESSES * EACH) as usize);
    drop(made);
}

fn entry(number: u64) -> (InstanceId, Entry) {
    let entry = Entry {
        host: host(number % HOSTS),
        run: RunId(number),
        hash: SpecHash(1),
        address: format!("10.0.{}.{}", number / 250 % 250, number % 250),
        ports: (&ports()).into(),
        started: number,
        ready: Some(number),
    };
    (instance(number), entry)
}

fn placement(number: u64) -> (InstanceId, Placement) {
    (instance(number), Placement { host: host(number % HOSTS), generation: number, hash: SpecHash(1) })
}

fn main() {
    let mut state = Arc::new(cluster());
    let (mut batch, mut one, mut snapshot, mut want, mut grounds) = (vec![], vec![], vec![], vec![], vec![]);
    for trial in 0..TRIALS {
        // One event of each of 64 hosts, as they come together in one batch.
        let published = state.clone();
        timed(&mut batch, || {
            let state = Arc::make_mut(&mut state);
            for n in 0..BATCH {
                let number = (trial * 31 + n * 7) % HOSTS;
                let (instance, run) = (instance(number + n * HOSTS), RunId(number + n * HOSTS + 1));
                tell(state, number, vec![Event { instance, run, kind: EventKind::Ready }]);
            }
        });
        assert_ne!(published.index, state.index);
        let published = state.clone();
        timed(&mut one, || {
            let event = Event { instance: instance(trial), run: RunId(trial + 1), kind: EventKind::Unready };
            tell(Arc::make_mut(&mut state), trial, vec![event]);
        });
        drop(published);
        let config = bincode::config::standard();
        let bytes = timed(&mut snapshot, || bincode::serde::encode_to_vec(&*state, config).unwrap());
        assert!(bytes.len() > 1_000_000);
        let wanted = timed(&mut want, || wants(&state, &host(trial)));
        assert_eq!(wanted.len(), 100);
        timed(&mut grounds, || Grounds::of(&state));
    }
    report("64 events of 64 hosts, after the last state went out", batch);
    report("one event, after the last state went out", one);
    report("a snapshot's bytes", snapshot);
    report("what one host wants", want);
    report("what that depends on", grounds);
    weigh("a directory entry", || (0..PROCESSES * EACH).map(entry).collect::<SharedMap<_, _>>());
    weigh("a placement", || (0..PROCESSES * EACH).map(placement).collect::<SharedMap<_, _>>());
}

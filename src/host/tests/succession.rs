//! Who has a successor, what revokes it, and what becomes of it.

use super::stories::NATIVE;
use super::*;

const QUICK: &str = "heartbeat = { mode = \"native\", interval = \"1s\", timeout = \"5s\" }\n\
                     restart = { backoff = false, give_up = false }";

fn revoke(run: u64) -> Action {
    Action::Revoke { run: RunId(run) }
}

impl Rig {
    fn appoint(&mut self) -> Option<(u64, u64)> {
        let now = self.now();
        self.host.appoint(&zone(), now).map(|(run, successor)| (run.0, successor.0))
    }

    /// Ready, and with a successor.
    fn succeeded(lines: &str) -> Rig {
        let mut rig = Rig::ready(lines);
        assert_eq!(rig.appoint(), Some((1, 2)));
        rig
    }
}

#[test]
fn a_run_in_service_that_would_be_followed_at_once_has_one() {
    let mut rig = Rig::started(QUICK);
    assert_eq!(rig.appoint(), None, "it may never get ready");
    rig.make_ready();
    assert_eq!(rig.appoint(), Some((1, 2)));
    assert_eq!(rig.appoint(), None, "one is enough");
    assert_eq!(orders(rig.gone(CRASHED)), [ack(1), spawn(2)], "its number was reserved");
    rig.spawned();
    rig.make_ready();
    assert_eq!(rig.appoint(), Some((2, 3)));
    // Done, but wanted all the same: the keeper has begun nothing, and the number is as good as any.
    assert_eq!(orders(rig.gone(End::Code(0))), [ack(2), spawn(3)]);
}

#[test]
fn one_that_would_wait_or_rest_has_none_until_it_would_not() {
    let mut rig = Rig::ready(NATIVE);
    assert_eq!(rig.appoint(), Some((1, 2)), "the first failure is followed at once");
    assert_eq!(orders(rig.gone(CRASHED)), [ack(1), spawn(2)]);
    rig.spawned();
    rig.make_ready();
    assert_eq!(rig.appoint(), None, "the second is not");
    let healthy = rig.want.process.restart.healthy_after;
    let now = Now { at: rig.at.after(healthy), ..rig.now() };
    assert_eq!(
        rig.host.appoint(&zone(), now),
        Some((RunId(2), RunId(3))),
        "it has been well for long enough"
    );

    for lines in ["restart = { policy = \"never\" }", "on_partition = \"stop\""] {
        let mut rig = Rig::ready(&format!("ready = {{ mode = \"spawned\", after = \"0s\" }}\n{lines}"));
        assert_eq!(rig.appoint(), None, "{lines}");
    }
}

#[test]
fn whatever_ends_or_changes_it_revokes_it_before_all_else() {
    type Case = (&'static str, fn(&mut Rig) -> Vec<Action>);
    let cases: [Case; 10] = [
        ("another main process", |rig| rig.on(Happening::MainPid(4711))),
        ("an update", |rig| rig.update(&format!("{QUICK}\nbuild = \"2\""))),
        ("other limits", |rig| {
            rig.want.process = process(&format!("{QUICK}\nlimits = {{ files = 99 }}"));
            rig.heed()
        }),
        ("a pause", |rig| rig.pause(true)),
        ("a removal", Rig::remove),
        ("a restart", |rig| rig.on(Happening::Restart)),
        ("a hang", |rig| rig.wait(s(6))),
        ("a trigger", |rig| rig.on(Happening::Trigger)),
        ("its own drain", |rig| rig.on(Happening::Draining)),
        ("its own end", |rig| rig.on(Happening::Stopping)),
    ];
    for (name, change) in cases {
        let mut rig = Rig::succeeded(QUICK);
        if name == "a hang" {
            rig.on(Happening::Beat);
        }
        let actions = change(&mut rig);
        assert_eq!(actions.first(), Some(&revoke(1)), "{name}: {actions:?}");
        assert_eq!(actions.iter().filter(|action| **action == revoke(1)).count(), 1, "{name}");
        assert_eq!(rig.instance().successor, None, "{name}");
    }
}

#[test]
fn what_it_says_of_itself_revokes_nothing() {
    let mut rig = Rig::succeeded(QUICK);
    let said = [
        Happening::Beat,
        Happening::Ready,
        Happening::Connected(true),
        Happening::Text("full".to_owned()),
        Happening::Timeout(s(9)),
        Happening::Announced,
    ];
    for happening in said {
        let actions = rig.on(happening.clone());
        assert!(!actions.contains(&revoke(1)), "{happening:?}: {actions:?}");
    }
    assert_eq!(orders(rig.heed()), [], "wanted again, it is nothing new");
    assert_eq!(rig.instance().successor, Some(RunId(2)));
}

#[test]
fn the_number_of_one_that_was_revoked_is_not_given_again() {
    let mut rig = Rig::succeeded(QUICK);
    rig.on(Happening::Restart);
    assert_eq!(orders(rig.gone(CRASHED)), [ack(1), spawn(3)]);
    rig.spawned();
    rig.make_ready();
    assert_eq!(rig.appoint(), Some((3, 4)));
    assert_eq!(rig.host.revoke_all(), [revoke(3)]);
    assert_eq!(rig.host.revoke_all(), []);
    assert_eq!(rig.appoint(), Some((3, 5)));
}

#[test]
fn the_next_run_begins_with_a_note_of_its_own() {
    let mut rig = Rig::succeeded(QUICK);
    rig.on(Happening::Beat);
    let (now, next) = (rig.instance().note().unwrap(), rig.instance().next_note().unwrap());
    assert!(now.ready && now.armed);
    rig.gone(CRASHED);
    let ordered = rig.instance().note().unwrap();
    assert_eq!(next, crate::host::instance::Note { failures: next.failures.clone(), ..ordered });
}

fn found(run: u64, stage: Stage, note: Option<crate::host::instance::Note>) -> Found {
    let (pid, ports) = (100 + run as i32, Ports::new());
    Found { instance: zone(), run: RunId(run), pid, stage, note, ports, spawned_ms: 0 }
}

#[test]
fn another_keeper_knows_of_none() {
    let mut rig = Rig::succeeded(QUICK);
    let note = rig.instance().note();
    assert_eq!(orders(rig.meet(vec![found(1, Stage::Running, note)])), []);
    assert_eq!(rig.appoint(), Some((1, 3)));
}

#[test]
fn one_that_a_lost_keeper_had_begun_goes_on() {
    for listed in [true, false] {
        let mut rig = Rig::succeeded(QUICK);
        let mut table = vec![found(2, Stage::Running, rig.instance().next_note())];
        if listed {
            table.push(found(1, Stage::Gone { end: CRASHED, fenced: false }, rig.instance().note()));
        }
        assert_eq!(orders(rig.meet(table)), [ack(1), spawn(2)], "which is carried out already");
        assert_eq!((rig.run(), rig.instance().run.as_ref().unwrap().pid), (RunId(2), Some(102)));
        assert_eq!(rig.instance().restarts, 1);
        let end = if listed { CRASHED } else { End::Unknown };
        assert_eq!(rig.instance().last_exit.as_ref().map(|last| last.end), Some(end));
    }
}

#[test]
fn a_new_agent_finds_the_end_of_the_run_before() {
    let mut rig = Rig::succeeded(QUICK);
    let table = vec![
        found(1, Stage::Gone { end: CRASHED, fenced: false }, rig.instance().note()),
        found(2, Stage::Running, rig.instance().next_note()),
    ];
    rig.host = Host::new(1);
    assert_eq!(orders(rig.meet(table.clone())), [ack(1)]);
    assert_eq!((rig.run(), rig.instance().restarts), (RunId(2), 1));
    assert_eq!(rig.instance().last_exit.as_ref().map(|last| last.end), Some(CRASHED));
    let failures = rig.instance().failures.clone();
    assert_eq!(failures.consecutive(), 1, "nobody had written it down");
    assert_eq!(orders(rig.meet(table)), [ack(1)], "listed again");
    assert_eq!(rig.instance().failures, failures);
    assert_eq!(rig.instance().restarts, 1, "and counted once");
}

#[test]
fn all_are_looked_at_a_piece_at_a_time() {
    let mut rig = Rig::ready(QUICK);
    let ids = ["zone.1", "zone.2", "zone.3"].map(|id| id.parse::<InstanceId>().unwrap());
    let wants = ids.iter().chain([&zone()]).map(|id| (id.clone(), rig.want.clone())).collect();
    let now = rig.now();
    rig.host.desire(wants, now);
    for id in &ids {
        let (pid, ports) = (7, Ports::new());
        rig.host.on(id, Happening::Spawned { pid, ports }, now);
        rig.host.on(id, Happening::Ready, now);
    }
    let names = |rig: &Rig, behind: Option<&InstanceId>| {
        let without = rig.host.without_successor(behind, now);
        without.map(|instance| instance.id.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names(&rig, None), ["zone.0", "zone.1", "zone.2", "zone.3"]);
    assert_eq!(names(&rig, Some(&ids[1])), ["zone.3"]);
    rig.host.appoint(&ids[2], now).unwrap();
    assert_eq!(names(&rig, Some(&ids[1])), [""; 0]);
    assert_eq!(names(&rig, Some(&zone())), ["zone.1", "zone.2"]);
}

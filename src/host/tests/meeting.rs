//! The keeper's table: a new agent, a new keeper, and what was lost between them.

use std::collections::BTreeSet;

use super::stories::{NOTIFY, TCP};
use super::*;
use crate::host::instance::{Leaving, Note};
use crate::keeper::protocol::SpawnStep;

const NATIVE: &str = "heartbeat = { mode = \"native\", interval = \"1s\", timeout = \"5s\" }";

fn found(rig: &Rig, run: u64, stage: Stage) -> Found {
    let stop = rig.want.process.stop.clone();
    let note = Note {
        hash: rig.want.hash,
        ready: true,
        armed: true,
        own_timeout_ms: None,
        stop,
        native: false,
        failures: Default::default(),
        leaving: Leaving::No,
    };
    Found {
        instance: zone(),
        run: RunId(run),
        pid: 100,
        stage,
        note: Some(note),
        ports: Ports::new(),
        spawned_ms: 1,
    }
}

fn gone(end: End) -> Stage {
    Stage::Gone { end, fenced: false }
}

impl Rig {
    pub(super) fn meet(&mut self, table: Vec<Found>) -> Vec<Action> {
        let wants = BTreeMap::from([(zone(), self.want.clone())]);
        self.host.meet(table, &wants, &BTreeSet::new(), self.now())
    }

    /// What the keeper would list of the run as it is.
    fn listed(&self, stage: Stage) -> Found {
        Found { note: self.instance().note(), ..found(self, self.run().0, stage) }
    }
}

#[test]
fn a_living_run_is_taken_over_and_watched() {
    let mut rig = Rig::idle(NATIVE);
    let table = vec![found(&rig, 7, Stage::Running)];
    assert_eq!(orders(rig.meet(table)), []);
    assert_eq!(orders(rig.heed()), []);
    assert_eq!((rig.phase(), rig.run()), (Phase::Ready, RunId(7)));
    assert_eq!(rig.host.last_run(), 7);
    assert!(rig.host.inventory()[&zone()].ready);
    assert_eq!(orders(rig.wait(ms(4_999))), []);
    assert_eq!(orders(rig.wait(ms(1))), [kill(7)], "it was armed");
    assert_eq!(orders(rig.gone(KILLED)), [ack(7), spawn(8)]);
}

/// An agent without a copy of the state: what its runs belong to it hears later than of the runs.
#[test]
fn one_of_which_nothing_is_known_yet_is_left_alone_and_watched_from_then_on() {
    for lines in [TCP, NOTIFY, NATIVE] {
        let mut rig = Rig::idle(lines);
        let table = vec![found(&rig, 7, Stage::Running)];
        assert_eq!(orders(rig.host.meet(table, &BTreeMap::new(), &BTreeSet::new(), rig.now())), []);
        assert_eq!(orders(rig.wait(s(600))), [], "nobody says how it is watched: {lines}");
        assert_eq!(orders(rig.heed()), []);
        if lines == TCP {
            let asked = rig.wait_for_question();
            rig.on(alive(asked));
        } else {
            rig.on(Happening::Beat);
        }
        let lived = orders(rig.wait(ms(3_000)));
        assert!(!lived.contains(&kill(7)), "{lines}: {lived:?}");
        assert_eq!(rig.phase(), Phase::Ready);
        assert!(orders(rig.wait(s(10))).contains(&kill(7)), "watched no more: {lines}");
    }
}

#[test]
fn one_that_starts_and_of_which_nothing_is_known_yet_has_its_time_and_its_word() {
    for says_ready in [true, false] {
        let mut rig = Rig::idle(NATIVE);
        let mut run = found(&rig, 7, Stage::Running);
        run.note.as_mut().unwrap().ready = false;
        rig.host.meet(vec![run], &BTreeMap::new(), &BTreeSet::new(), rig.now());
        assert_eq!(orders(rig.wait(s(600))), [], "nobody says how long it may take");
        if says_ready {
            rig.on(Happening::Ready);
        }
        assert_eq!(orders(rig.heed()), []);
        assert_eq!(rig.phase() == Phase::Ready, says_ready);
        assert_eq!(orders(rig.wait(rig.want.process.ready.timeout - ms(1))).contains(&kill(7)), says_ready);
        assert!(says_ready || orders(rig.wait(ms(1))).contains(&kill(7)), "it has no end");
    }
}

#[test]
fn one_whose_exec_is_not_over_has_not_started() {
    let mut rig = Rig::idle("ready = { mode = \"spawned\", after = \"10ms\" }");
    let mut run = found(&rig, 7, Stage::Spawning);
    run.note.as_mut().unwrap().ready = false;
    assert_eq!(told(&rig.meet(vec![run])), []);
    rig.heed();
    rig.wait(s(1));
    assert!(matches!(rig.phase(), Phase::Starting { .. }), "{:?}", rig.phase());
    assert!(rig.host.inventory().is_empty());
    rig.on(Happening::SpawnStuck);
    assert!(rig.instance().reason.as_ref().unwrap().starts_with("spawn-stuck"));
    let actions = rig.on(Happening::Spawned { pid: 100, ports: Ports::new() });
    assert!(matches!(told(&actions)[..], [EventKind::Started { .. }, EventKind::Ready]), "{actions:?}");
    assert_eq!((rig.phase(), rig.run()), (Phase::Ready, RunId(7)));
}

#[test]
fn its_own_timeout_is_taken_over() {
    let mut rig = Rig::idle(&NATIVE.replace("native", "notify"));
    let mut run = found(&rig, 7, Stage::Running);
    run.note.as_mut().unwrap().own_timeout_ms = Some(60_000);
    rig.meet(vec![run]);
    assert_eq!(orders(rig.wait(ms(59_999))), []);
    assert_eq!(orders(rig.wait(ms(1))), [kill(7)]);
}

#[test]
fn one_that_ended_while_nobody_listened_is_judged_by_its_exit() {
    let mut rig = Rig::idle(NATIVE);
    let table = vec![found(&rig, 7, gone(End::Code(3)))];
    let actions = rig.meet(table);
    assert!(told(&actions).contains(&stopped(End::Code(3), false)), "{actions:?}");
    assert_eq!(orders(actions), [ack(7), spawn(8)]);
    assert_eq!(rig.instance().last_exit.as_ref().unwrap().end, End::Code(3));
}

#[test]
fn one_that_could_not_be_started_is_a_failed_spawn() {
    let mut rig = Rig::idle(NATIVE);
    let table = vec![found(&rig, 7, Stage::SpawnFailed { step: SpawnStep::Exec, errno: 2 })];
    assert_eq!(orders(rig.meet(table)), [ack(7)]);
    assert!(matches!(rig.phase(), Phase::Backoff { .. }));
    assert_eq!(rig.instance().last_exit.as_ref().unwrap().cause, Cause::Spawn);
}

#[test]
fn one_whose_main_process_ended_is_waited_for() {
    let mut rig = Rig::idle(NATIVE);
    let table = vec![found(&rig, 7, Stage::Exited(End::Code(3)))];
    assert_eq!(orders(rig.meet(table)), []);
    assert_eq!(orders(rig.heed()), []);
    assert_eq!(orders(rig.gone(End::Code(3))), [ack(7), spawn(8)]);
}

#[test]
fn one_that_ends_before_the_wants_are_heeded_is_neither_released_nor_done() {
    let mut rig = Rig::idle(NATIVE);
    let table = vec![found(&rig, 7, Stage::Running)];
    rig.meet(table);
    let actions = rig.gone(CRASHED);
    assert!(told(&actions).contains(&stopped(CRASHED, false)), "{actions:?}");
    assert_eq!(orders(actions), [ack(7), spawn(8)]);
}

#[test]
fn what_is_wanted_is_compared_with_what_was_taken_over() {
    let mut rig = Rig::idle(NATIVE);
    rig.want.paused = true;
    let table = vec![found(&rig, 7, Stage::Running)];
    rig.meet(table);
    assert_eq!(orders(rig.heed()), [ask(7, StopReason::Stop, s(10), Some(15))]);
    let mut rig = Rig::idle(NATIVE);
    let mut run = found(&rig, 7, Stage::Running);
    run.note.as_mut().unwrap().hash.0 += 1;
    rig.meet(vec![run]);
    assert_eq!(orders(rig.heed()), [ask(7, StopReason::Update, s(10), Some(15))]);
    assert_eq!(rig.heed(), []);
}

#[test]
fn what_nobody_wants_is_stopped_or_forgotten() {
    let mut rig = Rig::idle(NATIVE);
    let table = vec![found(&rig, 7, Stage::Running)];
    rig.host.meet(table, &BTreeMap::new(), &BTreeSet::new(), rig.now());
    let stop = ask(7, StopReason::Remove, s(10), Some(15));
    assert_eq!(orders(rig.remove()), [stop], "by what its note says");
    assert_eq!(orders(rig.gone(End::Code(0))), [ack(7), Action::Release { instance: zone() }]);
    let table = vec![found(&rig, 8, gone(KILLED))];
    assert_eq!(rig.host.meet(table, &BTreeMap::new(), &BTreeSet::new(), rig.now()), [ack(8)]);
}

#[test]
fn one_without_a_readable_note_is_not_ready_and_not_counted_as_such() {
    let mut rig = Rig::idle(NATIVE);
    let run = Found { note: None, ..found(&rig, 7, Stage::Running) };
    rig.meet(vec![run]);
    assert!(matches!(rig.phase(), Phase::Starting { .. }));
    assert!(!rig.host.inventory()[&zone()].ready);
}

#[test]
fn one_that_the_new_keeper_does_not_know_has_ended_unseen() {
    let mut rig = Rig::ready(NATIVE);
    let actions = rig.meet(Vec::new());
    assert!(told(&actions).contains(&stopped(End::Unknown, false)), "{actions:?}");
    assert_eq!(orders(actions), [ack(1), spawn(2)]);
    assert_eq!(rig.instance().last_exit.as_ref().unwrap().cause, Cause::Unknown);
}

#[test]
fn a_known_run_goes_on_over_a_new_keeper() {
    let mut rig = Rig::ready(NATIVE);
    let table = vec![rig.listed(Stage::Running)];
    assert_eq!(rig.meet(table), []);
    assert_eq!((rig.phase(), rig.run()), (Phase::Ready, RunId(1)));
    assert_eq!(rig.heed(), []);
    let table = vec![rig.listed(gone(End::Code(4)))];
    assert_eq!(orders(rig.meet(table)), [ack(1), spawn(2)]);
}

#[test]
fn a_run_whose_start_was_not_heard_of_is_started() {
    let mut rig = Rig::ordered(NATIVE);
    let table = vec![rig.listed(Stage::Running)];
    assert!(matches!(told(&rig.meet(table))[..], [EventKind::Started { .. }]));
    assert_eq!(rig.instance().run.as_ref().unwrap().pid, Some(100));
}

#[test]
fn a_note_that_was_lost_with_the_old_keeper_is_written_again() {
    let mut rig = Rig::started(NATIVE);
    let stale = rig.listed(Stage::Running);
    rig.make_ready();
    assert_eq!(rig.meet(vec![stale]), [Action::Remember { instance: zone(), run: RunId(1) }]);
}

#[test]
fn an_ordered_kill_is_repeated_to_a_new_keeper() {
    let mut rig = Rig::ready(NATIVE);
    rig.on(Happening::Beat);
    assert_eq!(orders(rig.wait(s(5))), [kill(1)]);
    let table = vec![rig.listed(Stage::Running)];
    assert_eq!(rig.meet(table), [kill(1)]);
    assert_eq!(orders(rig.gone(KILLED)), [ack(1), spawn(2)]);
}

#[test]
fn an_end_whose_acknowledgement_was_lost_counts_once() {
    let mut rig = Rig::ready(NATIVE);
    rig.gone(CRASHED);
    rig.spawned();
    rig.gone(CRASHED);
    let before = (rig.phase(), rig.instance().failures.clone(), rig.instance().restarts);
    assert!(matches!(before.0, Phase::Backoff { .. }));
    let table = vec![found(&rig, 1, gone(CRASHED)), found(&rig, 2, gone(CRASHED))];
    assert_eq!(rig.meet(table), [ack(1), ack(2)]);
    assert_eq!((rig.phase(), rig.instance().failures.clone(), rig.instance().restarts), before);
    rig.wait(ms(100));
    rig.spawned();
    let table = vec![found(&rig, 2, gone(CRASHED)), rig.listed(Stage::Running)];
    assert_eq!(rig.meet(table), [ack(2)], "beside the run that followed");
    assert_eq!(rig.run(), RunId(3));
}

#[test]
fn the_end_of_an_older_run_starts_nothing_beside_a_living_one() {
    let mut rig = Rig::idle(NATIVE);
    let table = vec![found(&rig, 3, gone(CRASHED)), found(&rig, 4, Stage::Running)];
    assert_eq!(orders(rig.meet(table)), [ack(3)]);
    assert_eq!(rig.run(), RunId(4));
}

#[test]
fn numbers_of_the_table_are_not_used_twice() {
    let mut rig = Rig::idle(NATIVE);
    let other = Found { instance: "zone.1".parse().unwrap(), ..found(&rig, 9, Stage::Running) };
    let table = vec![found(&rig, 3, gone(CRASHED)), other];
    assert_eq!(orders(rig.meet(table)), [ack(3), spawn(10)]);
}

#[test]
fn the_end_of_an_unknown_run_is_acknowledged_and_nothing_else_of_it_is_heard() {
    let mut rig = Rig::ready(NATIVE);
    let now = rig.now();
    let end = Happening::Gone { end: KILLED, fenced: false };
    assert_eq!(rig.host.on_run(RunId(77), end, now), [ack(77)]);
    assert_eq!(rig.host.on_run(RunId(77), Happening::SpawnFailed(String::new()), now), [ack(77)]);
    assert_eq!(rig.host.on_run(RunId(77), Happening::Exited(KILLED), now), []);
    assert_eq!(rig.phase(), Phase::Ready);
}

/// A new agent that finds the run of this one as its note says.
fn successor(rig: &mut Rig) {
    let table = vec![rig.listed(Stage::Running)];
    rig.host = Host::new(0);
    assert_eq!(orders(rig.meet(table)), []);
    assert_eq!(orders(rig.heed()), []);
}

#[test]
fn a_draining_run_goes_on_draining_with_a_new_agent() {
    let mut rig = Rig::ready(&format!("{NATIVE}\ndrain = {{ timeout = \"60s\" }}"));
    rig.on(Happening::Connected(true));
    rig.on(Happening::Draining);
    rig.wait(s(1));
    successor(&mut rig);
    assert!(matches!(rig.phase(), Phase::Draining { cause: None, .. }));
    assert_eq!(orders(rig.wait(ms(58_999))), []);
    let within = s(10);
    assert_eq!(
        orders(rig.wait(ms(1))),
        [ask(1, StopReason::DrainTimeout, within, Some(15))],
        "as it was to be"
    );
}

#[test]
fn the_cause_and_the_deadline_of_a_stop_are_kept_by_a_new_agent() {
    let mut rig = Rig::ready(NATIVE);
    rig.on(Happening::Restart);
    rig.wait(s(4));
    successor(&mut rig);
    assert_eq!(orders(rig.wait(ms(5_999))), [], "it was asked");
    assert_eq!(orders(rig.wait(ms(1))), [kill(1)]);
    rig.gone(KILLED);
    assert_eq!(rig.instance().last_exit.as_ref().unwrap().cause, Cause::Operator);
}

#[test]
fn one_that_speaks_may_drain_before_it_has_said_hello_to_a_new_agent() {
    let mut rig = Rig::ready(NATIVE);
    rig.on(Happening::Connected(true));
    successor(&mut rig);
    rig.update(&format!("{NATIVE}\nbuild = \"2\""));
    assert!(matches!(rig.phase(), Phase::Draining { .. }));
    let told = orders(rig.on(Happening::Connected(true)));
    assert!(matches!(told[..], [Action::Ask { reason: StopReason::Update, signal: None, .. }]), "{told:?}");
}

#[test]
fn what_the_keeper_before_did_not_hear_is_asked_again_and_nothing_is_asked_twice() {
    let mut rig = Rig::ready(NATIVE);
    let stale = rig.listed(Stage::Running);
    rig.pause(true);
    rig.wait(s(1));
    let heard = rig.listed(Stage::Running);
    let again = [ask(1, StopReason::Stop, s(9), Some(15))];
    assert_eq!(orders(rig.meet(vec![stale])), again);
    assert_eq!(orders(rig.meet(vec![heard])), [], "a keeper that has the note has heard the signal");
}

#[test]
fn a_run_that_no_keeper_was_told_of_is_not_lost_with_it() {
    let mut rig = Rig::ordered(NATIVE);
    let wants = BTreeMap::from([(zone(), rig.want.clone())]);
    let now = rig.now();
    assert_eq!(rig.host.meet(Vec::new(), &wants, &BTreeSet::from([RunId(1)]), now), []);
    assert_eq!(rig.run(), RunId(1));
    assert_eq!(orders(rig.meet(Vec::new())), [ack(1), spawn(2)], "told, it would be");
}

const ONCE: &str = "restart = { policy = \"never\" }";

#[test]
fn one_that_is_done_is_acknowledged_by_nobody_before_the_state_holds_it() {
    let mut rig = Rig::ready(ONCE);
    let actions = rig.gone(End::Code(0));
    let rest = rig.host.rests().remove(&zone()).expect("it rests");
    assert_eq!((rest.run, rest.end, rest.failed.clone()), (RunId(1), End::Code(0), None));
    assert_eq!(told(&actions), [stopped(End::Code(0), true), EventKind::Rests(rest.clone())]);
    assert_eq!(orders(actions), []);
    let table = vec![found(&rig, 1, gone(End::Code(0)))];
    assert_eq!(rig.meet(table), [], "the inventory tells it again");
}

#[test]
fn what_rests_goes_on_resting_with_a_new_agent_until_it_is_asked_to_start() {
    let give_up = "restart = { give_up = { failures = 1, within = \"1h\" } }";
    for (lines, word) in [(ONCE, "stopped"), (give_up, "failed")] {
        let mut rig = Rig::ready(lines);
        rig.gone(CRASHED);
        if rig.instance().run.is_some() {
            rig.spawned();
            rig.gone(CRASHED);
        }
        assert_eq!(rig.phase().as_str(), word);
        let reason = rig.instance().reason.clone();
        rig.want.rest = rig.host.rests().remove(&zone());
        let run = rig.want.rest.as_ref().expect("it rests").run.0;
        rig.host = Host::new(run);
        assert_eq!(orders(rig.meet(Vec::new())), []);
        assert_eq!(orders(rig.heed()), []);
        assert_eq!((rig.phase().as_str(), rig.instance().reason.clone()), (word, reason));
        assert_eq!(rig.host.rests().remove(&zone()), rig.want.rest);
        rig.want.generation += 1;
        rig.want.rest = None;
        assert_eq!(orders(rig.heed()), [spawn(run + 1)], "{word}");
    }
}

#[test]
fn a_new_agent_counts_on_where_the_one_before_was() {
    let mut rig = Rig::ready("restart = { give_up = { failures = 1, within = \"1h\" } }");
    rig.gone(CRASHED);
    rig.spawned();
    let table = vec![rig.listed(gone(CRASHED))];
    rig.host = Host::new(2);
    assert_eq!(orders(rig.meet(table)), [], "it was failed, whether or not anybody had held that");
    assert_eq!(rig.phase(), Phase::Failed);
}

#[test]
fn the_longest_note_fits_the_ledger() {
    let rig = Rig::ready(NATIVE);
    let mut note = rig.instance().note().unwrap();
    let late = Moment(u64::MAX);
    let leaving = Leaving::Draining { until: late, cause: Some(Cause::Unknown), confirm: Some(late) };
    note = Note { own_timeout_ms: Some(u64::MAX), leaving, ..note };
    note.hash.0 = u64::MAX;
    let policy = process("restart = { backoff = false, give_up = { failures = 100, within = \"1h\" } }");
    let ending = crate::host::restart::Ending { cause: Cause::Exit, end: CRASHED, healthy_for: s(0) };
    let mut failures = crate::host::restart::Failures::default();
    for _ in 0..100 {
        failures.judge(&policy.restart, ending, Now { at: late, ..rig.now() });
    }
    note.failures = failures.noted();
    let bytes = bincode::serde::encode_to_vec(&note, bincode::config::standard()).unwrap();
    assert!((150..=crate::keeper::protocol::MAX_NOTE).contains(&bytes.len()), "{} bytes", bytes.len());
}

#[test]
fn the_time_that_a_failed_one_waited_for_its_start_is_no_restart() {
    let mut rig = Rig::ready("restart = { give_up = { failures = 1, within = \"1h\" } }");
    rig.gone(CRASHED);
    rig.spawned();
    rig.gone(CRASHED);
    assert_eq!(rig.phase(), Phase::Failed);
    let before = rig.instance().restarts;
    rig.wait(s(3600));
    rig.on(Happening::Restart);
    let actions = rig.spawned();
    let measured = actions.iter().any(|a| matches!(a, Action::Measure(Measure::Restarted { .. })));
    assert!(!measured, "{actions:?}");
    assert_eq!(rig.instance().restarts, before + 1);
}

#[test]
fn an_unconfirmed_drain_ends_with_the_reason_that_it_had() {
    let mut rig = Rig::ready(NATIVE);
    rig.on(Happening::Connected(true));
    rig.remove();
    assert_eq!(orders(rig.wait(s(10))), [ask(1, StopReason::Remove, s(10), Some(15))]);
}

#[test]
fn a_run_that_waits_for_the_agent_is_not_late() {
    let mut rig = Rig::ordered(NATIVE);
    let unsent = BTreeSet::from([rig.run()]);
    let timeout = rig.want.process.ready.timeout;
    // No keeper for longer than it may take to get ready.
    rig.at = rig.at.after(2 * timeout);
    let (wants, now) = (BTreeMap::from([(zone(), rig.want.clone())]), rig.now());
    assert_eq!(rig.host.meet(Vec::new(), &wants, &unsent, now), []);
    assert_eq!(orders(rig.wait(timeout - ms(1))), []);
    // Its turn has not come.
    assert_eq!(rig.host.late(rig.at), BTreeSet::new());
    rig.at = rig.at.after(ms(1));
    assert_eq!(rig.host.late(rig.at), unsent);
    rig.host.put_off(&unsent, rig.at);
    assert_eq!(rig.host.late(rig.at), BTreeSet::new());
    assert_eq!(orders(rig.wait(timeout - ms(1))), []);
    assert_eq!(orders(rig.wait(ms(1))), [kill(1)], "its time begins at last");
    // One that runs is not put off.
    let mut rig = Rig::started(NATIVE);
    rig.at = rig.at.after(timeout - ms(1));
    rig.host.put_off(&unsent, rig.at);
    assert_eq!(rig.host.late(rig.at.after(ms(1))), BTreeSet::new());
    assert_eq!(orders(rig.wait(ms(1))), [kill(1)]);
}

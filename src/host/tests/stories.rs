//! Lives of an instance: how it begins, stops and ends, and what follows what.

use super::*;

pub(super) const NATIVE: &str = "ready = { mode = \"native\", timeout = \"30s\" }
heartbeat = { mode = \"native\", interval = \"1s\", timeout = \"5s\" }
stop = { timeout = \"10s\" }
drain = { timeout = \"1h\" }";
pub(super) const NOTIFY: &str = "heartbeat = { mode = \"notify\", interval = \"1s\", timeout = \"5s\" }";
pub(super) const TCP: &str = "ports = { game = \"tcp\" }
ready = { mode = \"tcp\" }
heartbeat = { mode = \"tcp\", interval = \"1s\", timeout = \"5s\" }";
pub(super) const PLAIN: &str =
    "ready = { mode = \"spawned\", after = \"2s\" }\nstop = { signal = \"SIGINT\", timeout = \"10s\" }";

// ---- getting ready

#[test]
fn a_native_run_is_ready_when_it_says_so() {
    let mut rig = Rig::started(NATIVE);
    rig.wait(s(29));
    assert!(matches!(rig.phase(), Phase::Starting { .. }), "{:?}", rig.phase());
    let actions = rig.on(Happening::Ready);
    assert_eq!(told(&actions), [EventKind::Ready]);
    assert!(actions.contains(&Action::Remember { instance: zone(), run: RunId(1) }), "{actions:?}");
}

#[test]
fn a_probed_run_is_ready_when_it_answers_and_not_when_it_says_so() {
    let mut rig = Rig::started(TCP);
    rig.on(Happening::Ready);
    assert!(matches!(rig.phase(), Phase::Starting { .. }));
    let asked = rig.wait_for_question();
    rig.on(Happening::Probed { asked, answer: Answer::Refused, status: Default::default() });
    assert!(matches!(rig.phase(), Phase::Starting { .. }));
    let next = rig.wait_for_question();
    assert_ne!(asked, next);
    rig.on(alive(asked));
    assert!(matches!(rig.phase(), Phase::Starting { .. }), "the answer to an old question counted");
    rig.on(alive(next));
    assert_eq!(rig.phase(), Phase::Ready);
}

#[test]
fn a_spawned_run_is_ready_at_its_age() {
    let mut rig = Rig::started(PLAIN);
    rig.wait(ms(1999));
    assert!(matches!(rig.phase(), Phase::Starting { .. }));
    rig.wait(ms(1));
    assert_eq!(rig.phase(), Phase::Ready);
}

#[test]
fn one_that_does_not_get_ready_counts_as_hung() {
    let mut rig = Rig::started(NATIVE);
    rig.wait(ms(29_999));
    let actions = rig.wait(ms(1));
    assert!(actions.contains(&kill(1)), "{actions:?}");
    rig.gone(KILLED);
    assert_eq!(rig.instance().last_exit.as_ref().unwrap().cause, Cause::Hang);
}

#[test]
fn extend_timeout_gives_a_starting_run_more_time_and_never_less() {
    let mut rig = Rig::started(NATIVE);
    rig.on(Happening::Extend(s(1)));
    rig.wait(s(29));
    rig.on(Happening::Extend(s(60)));
    rig.wait(s(59));
    assert!(matches!(rig.phase(), Phase::Starting { .. }));
    assert!(rig.wait(s(2)).contains(&kill(1)));
}

// ---- stopping

#[test]
fn the_ladder_of_a_stop_is_to_ask_and_after_the_timeout_to_kill() {
    let mut rig = Rig::ready(PLAIN);
    let actions = rig.pause(true);
    assert_eq!(told(&actions), [EventKind::Unready]);
    assert_eq!(orders(actions), [ask(1, StopReason::Stop, s(10), Some(2))]);
    assert_eq!(orders(rig.pause(true)), []);
    assert_eq!(orders(rig.wait(ms(9_999))), []);
    assert_eq!(orders(rig.wait(ms(1))), [kill(1)]);
    assert_eq!(orders(rig.wait(s(1000))), [], "killed once");
    assert_eq!(orders(rig.gone(KILLED)), [ack(1)]);
    assert_eq!(rig.phase(), Phase::Paused);
    assert_eq!(rig.instance().last_exit.as_ref().unwrap().cause, Cause::Stop);
}

#[test]
fn hello_while_stopping_is_answered_with_the_message_once() {
    let mut rig = Rig::started(NATIVE);
    assert_eq!(orders(rig.pause(true)), [ask(1, StopReason::Stop, s(10), Some(15))]);
    rig.wait(s(4));
    assert_eq!(orders(rig.on(Happening::Connected(true))), [ask(1, StopReason::Stop, s(6), None)]);
    assert_eq!(rig.on(Happening::Connected(true)), []);
    let mut rig = Rig::started(NATIVE);
    rig.on(Happening::Restart);
    assert_eq!(orders(rig.on(Happening::Connected(true))), [ask(1, StopReason::Restart, s(10), None)]);
    let mut rig = Rig::started(NATIVE);
    rig.remove();
    assert_eq!(orders(rig.on(Happening::Connected(true))), [ask(1, StopReason::Remove, s(10), None)]);
    let mut rig = Rig::started(NATIVE);
    rig.on(Happening::Stopping);
    assert_eq!(orders(rig.on(Happening::Connected(true))), [], "it ends by its own wish");
}

#[test]
fn a_stop_waits_for_no_drain() {
    let mut rig = Rig::ready(NATIVE);
    rig.on(Happening::Connected(true));
    rig.on(Happening::Draining);
    assert_eq!(orders(rig.pause(true)), [ask(1, StopReason::Stop, s(10), Some(15))]);
}

#[test]
fn an_update_drains_one_that_is_connected_and_stops_any_other() {
    let changed = format!("{NATIVE}\nbuild = \"2\"");
    let mut rig = Rig::ready(NATIVE);
    assert_eq!(orders(rig.update(&changed)), [ask(1, StopReason::Update, s(10), Some(15))]);

    let mut rig = Rig::ready(NATIVE);
    rig.on(Happening::Connected(true));
    let actions = rig.update(&changed);
    assert_eq!(told(&actions), [EventKind::Unready]);
    assert_eq!(orders(actions), [ask(1, StopReason::Update, s(3600), None)]);
    rig.on(Happening::Draining);
    assert_eq!(orders(rig.wait(ms(3_599_999))), []);
    assert_eq!(orders(rig.wait(ms(1))), [ask(1, StopReason::DrainTimeout, s(10), Some(15))]);
    assert_eq!(orders(rig.gone(End::Code(0))), [ack(1), spawn(2)]);
    assert_eq!(rig.instance().last_exit.as_ref().unwrap().cause, Cause::Stop);
}

#[test]
fn one_that_does_not_confirm_its_drain_is_stopped() {
    let mut rig = Rig::ready(NATIVE);
    rig.on(Happening::Connected(true));
    rig.update(&format!("{NATIVE}\nbuild = \"2\""));
    assert_eq!(orders(rig.wait(ms(9_999))), []);
    assert_eq!(orders(rig.wait(ms(1))), [ask(1, StopReason::Update, s(10), Some(15))]);
}

#[test]
fn an_update_waits_for_its_turn_in_the_rollout() {
    let mut rig = Rig::ready(NATIVE);
    rig.want.replace = false;
    assert_eq!(orders(rig.update(&format!("{NATIVE}\nbuild = \"2\""))), []);
    rig.want.replace = true;
    assert_eq!(orders(rig.heed()), [ask(1, StopReason::Update, s(10), Some(15))]);
}

#[test]
fn a_draining_run_that_hangs_is_killed() {
    let mut rig = Rig::ready(NATIVE);
    rig.on(Happening::Beat);
    assert_eq!(told(&rig.on(Happening::Draining)), [EventKind::Unready]);
    assert_eq!(orders(rig.wait(s(5))), [kill(1)]);
}

#[test]
fn one_that_drains_before_it_was_ready_leaves_no_question_behind() {
    let lines = "ports = { game = \"tcp\" }\nready = { mode = \"tcp\" }
heartbeat = { mode = \"native\", interval = \"1s\", timeout = \"5s\" }";
    let mut rig = Rig::started(lines);
    rig.on(Happening::Draining);
    rig.wait(s(2));
    let due = rig.host.next_due().expect("the drain's own deadline");
    assert!(due > rig.at, "due at {due:?}, now {:?}: the loop would spin", rig.at);
}

#[test]
fn one_that_drains_or_stops_by_itself_is_followed_by_another() {
    let mut rig = Rig::ready(NATIVE);
    rig.on(Happening::Draining);
    rig.on(Happening::Stopping);
    assert!(matches!(rig.phase(), Phase::Stopping { cause: None, .. }));
    assert_eq!(orders(rig.gone(End::Code(0))), [ack(1), spawn(2)]);
    assert_eq!(rig.instance().last_exit.as_ref().unwrap().cause, Cause::Exit);
}

#[test]
fn one_that_says_it_is_stopping_and_does_not_is_hung() {
    let mut rig = Rig::ready(NATIVE);
    rig.on(Happening::Stopping);
    rig.wait(s(4));
    rig.on(Happening::Extend(s(20)));
    assert_eq!(orders(rig.wait(ms(19_999))), []);
    assert_eq!(orders(rig.wait(ms(1))), [kill(1)]);
    rig.gone(KILLED);
    assert_eq!(rig.instance().last_exit.as_ref().unwrap().cause, Cause::Hang, "the signal was ours");
}

// ---- ending

#[test]
fn what_is_left_of_a_run_is_waited_for() {
    let mut rig = Rig::ready(PLAIN);
    let actions = rig.on(Happening::Exited(End::Code(3)));
    assert_eq!(told(&actions), [EventKind::Unready]);
    assert_eq!(orders(actions), []);
    assert_eq!(orders(rig.wait(s(1000))), []);
    assert_eq!(orders(rig.gone(End::Code(3))), [ack(1), spawn(2)]);
    let last = rig.instance().last_exit.clone().unwrap();
    assert_eq!((last.cause, last.end), (Cause::Exit, End::Code(3)));
}

#[test]
fn crashes_back_off_and_then_give_up_until_start() {
    let lines = format!(
        "{NATIVE}\nrestart = {{ backoff = {{ min = \"100ms\", max = \"30s\" }}, give_up = {{ failures = 3, within = \"10m\" }} }}"
    );
    let mut rig = Rig::started(&lines);
    let cold = |rig: &Rig| rig.instance().run.as_ref().unwrap().cold;
    assert!(cold(&rig), "the first");
    assert_eq!(orders(rig.gone(CRASHED)), [ack(1), spawn(2)]);
    assert!(!cold(&rig), "nobody could take what it had");
    for (run, wait) in [(2, 100), (3, 200)] {
        rig.spawned();
        assert_eq!(orders(rig.gone(CRASHED)), [ack(run)]);
        assert!(matches!(rig.phase(), Phase::Backoff { .. }));
        assert_eq!(orders(rig.wait(ms(wait - 1))), []);
        assert_eq!(orders(rig.wait(ms(1))), [spawn(run + 1)]);
        assert!(cold(&rig), "it was down meanwhile");
    }
    rig.spawned();
    let actions = rig.gone(CRASHED);
    assert!(told(&actions).contains(&stopped(CRASHED, false)), "failed is not done");
    assert_eq!(rig.phase(), Phase::Failed);
    assert_eq!(orders(rig.wait(s(100_000))), []);
    assert_eq!(orders(rig.heed()), []);
    rig.want.generation += 1;
    assert_eq!(orders(rig.heed()), [spawn(5)], "start");
    rig.spawned();
    assert_eq!(orders(rig.gone(CRASHED)), [ack(5), spawn(6)], "old failures are forgotten");
}

#[test]
fn each_cause_has_its_name() {
    let end = |rig: &Rig| rig.instance().last_exit.as_ref().unwrap().cause;
    for (how, cause) in [
        (End::Code(0), Cause::Exit),
        (End::Code(9), Cause::Exit),
        (KILLED, Cause::Signal),
        (End::Unknown, Cause::Unknown),
    ] {
        let mut rig = Rig::ready(NATIVE);
        assert_eq!(orders(rig.gone(how)), [ack(1), spawn(2)]);
        assert_eq!(end(&rig), cause, "{how:?}");
    }
    let mut rig = Rig::ready(NATIVE);
    rig.on(Happening::Gone { end: KILLED, fenced: true });
    assert_eq!(end(&rig), Cause::Fence);
    let mut rig = Rig::ready(NATIVE);
    rig.on(Happening::Restart);
    rig.gone(End::Code(0));
    assert_eq!(end(&rig), Cause::Operator);
    let mut rig = Rig::ordered(NATIVE);
    rig.on(Happening::SpawnFailed("no such file".to_owned()));
    assert_eq!(end(&rig), Cause::Spawn);
}

#[test]
fn an_announced_kill_or_hang_is_the_operators_and_counts_for_nothing() {
    let mut rig = Rig::ready(NATIVE);
    for run in 1..50 {
        rig.on(Happening::Beat);
        rig.on(Happening::Announced);
        if run % 2 == 0 {
            assert_eq!(orders(rig.wait(s(5))), [kill(run)]);
        }
        assert_eq!(orders(rig.gone(KILLED)), [ack(run), spawn(run + 1)]);
        assert_eq!(rig.instance().last_exit.as_ref().unwrap().cause, Cause::Operator);
        rig.spawned();
        rig.make_ready();
    }
    rig.on(Happening::Announced);
    rig.wait(s(61));
    rig.gone(KILLED);
    assert_eq!(rig.instance().last_exit.as_ref().unwrap().cause, Cause::Signal, "an old announcement");
}

#[test]
fn operators_restart_what_runs_what_waits_and_what_failed() {
    let mut rig = Rig::ready(NATIVE);
    assert_eq!(orders(rig.on(Happening::Restart)), [ask(1, StopReason::Restart, s(10), Some(15))]);
    assert_eq!(orders(rig.gone(End::Code(0))), [ack(1), spawn(2)]);
    let mut rig = Rig::ordered(NATIVE);
    rig.on(Happening::SpawnFailed("no such file".to_owned()));
    assert!(matches!(rig.phase(), Phase::Backoff { .. }));
    assert_eq!(orders(rig.on(Happening::Restart)), [spawn(2)]);
    rig.pause(true);
    rig.on(Happening::SpawnFailed("no such file".to_owned()));
    assert_eq!(rig.phase(), Phase::Paused);
    assert_eq!(orders(rig.on(Happening::Restart)), [], "paused is paused");
}

#[test]
fn a_spawn_that_fails_waits_and_a_stuck_one_says_so() {
    let mut rig = Rig::ordered("restart = { backoff = false, give_up = false }");
    rig.on(Happening::SpawnStuck);
    assert!(rig.instance().reason.as_ref().unwrap().starts_with("spawn-stuck"));
    let actions = rig.on(Happening::SpawnFailed("no such file".to_owned()));
    assert_eq!(told(&actions), []);
    assert_eq!(orders(actions), [ack(1)]);
    assert_eq!(orders(rig.wait(ms(999))), [], "never at full speed");
    assert_eq!(orders(rig.wait(ms(1))), [spawn(2)]);
}

#[test]
fn a_launched_instance_is_done_when_it_ends_or_cannot_start() {
    let lines = "restart = { policy = \"never\" }";
    let mut rig = Rig::ready(lines);
    assert!(told(&rig.gone(End::Code(0))).contains(&stopped(End::Code(0), true)));
    assert_eq!(rig.phase(), Phase::Stopped);
    assert_eq!(orders(rig.wait(s(1000))), []);
    let mut rig = Rig::ordered(lines);
    let actions = rig.on(Happening::SpawnFailed("no such file".to_owned()));
    let rest = rig.host.rests().remove(&zone()).expect("it rests");
    assert_eq!(rest.failed, None);
    assert_eq!(told(&actions), [EventKind::Rests(rest)], "else its launch would stay for ever");
}

#[test]
fn what_is_removed_is_released_and_is_not_done() {
    let mut rig = Rig::ready(NATIVE);
    rig.remove();
    let actions = rig.gone(End::Code(0));
    assert_eq!(told(&actions), [stopped(End::Code(0), false)], "it may be wanted on another host");
    assert_eq!(orders(actions), [ack(1), Action::Release { instance: zone() }]);
    assert!(rig.host.instance(&zone()).is_none());
    let mut rig = Rig::ordered(NATIVE);
    rig.remove();
    let actions = rig.on(Happening::SpawnFailed("no such file".to_owned()));
    assert_eq!(orders(actions), [ack(1), Action::Release { instance: zone() }]);
}

#[test]
fn what_is_wanted_again_while_it_stops_follows() {
    let mut rig = Rig::ready(NATIVE);
    rig.remove();
    rig.heed();
    assert_eq!(orders(rig.gone(End::Code(0))), [ack(1), spawn(2)]);
}

// ---- waiting

#[test]
fn a_start_waits_for_what_it_comes_after_and_a_restart_does_not() {
    let mut rig = Rig::idle(NATIVE);
    rig.want.waits_for = Some("login".parse().unwrap());
    assert_eq!(rig.heed(), []);
    assert_eq!(rig.phase(), Phase::Waiting);
    assert_eq!(rig.instance().reason.as_deref(), Some("waits for login to be ready"));
    rig.want.waits_for = None;
    assert_eq!(orders(rig.heed()), [spawn(1)]);
    rig.spawned();
    rig.want.waits_for = Some("login".parse().unwrap());
    rig.heed();
    assert_eq!(orders(rig.gone(CRASHED)), [ack(1), spawn(2)], "a restart is local");
    rig.pause(true);
    rig.gone(End::Code(0));
    assert_eq!(orders(rig.pause(false)), [], "a start after a stop keeps the order");
    rig.want.waits_for = None;
    assert_eq!(orders(rig.heed()), [spawn(3)]);
}

#[test]
fn only_a_run_that_lived_is_missed() {
    let mut rig = Rig::ordered(NATIVE);
    let missed = |rig: &Rig| rig.instance().is_missed();
    assert!(!missed(&rig), "nothing was there");
    rig.on(Happening::SpawnFailed("no port".to_owned()));
    assert!(!missed(&rig));
    rig.wait(s(1));
    rig.spawned();
    for end in [KILLED, End::Unknown] {
        rig.gone(end);
        assert!(missed(&rig), "{end:?}");
        rig.wait(s(2));
        rig.spawned();
        assert!(!missed(&rig), "it is there again");
    }
    // Withdrawn before it was ordered, at an operator's wish.
    rig.gone(KILLED);
    rig.wait(s(2));
    rig.on(Happening::Restart);
    rig.on(Happening::SpawnFailed("it was stopped before it was started".to_owned()));
    assert!(matches!(rig.phase(), Phase::Starting { .. }), "{:?}", rig.phase());
    assert!(!missed(&rig), "what was withdrawn had not lived");
}

#[test]
fn another_main_process_is_no_other_start() {
    let mut rig = Rig::ready(NATIVE);
    let pid = rig.instance().run.as_ref().and_then(|run| run.pid).unwrap();
    assert_eq!(rig.on(Happening::MainPid(pid + 1)), [Action::Follow { run: RunId(1), pid: pid + 1 }]);
    // That the keeper follows it is what counts.
    assert_eq!(rig.instance().run.as_ref().and_then(|run| run.pid), Some(pid));
    assert_eq!(rig.on(Happening::Spawned { pid: pid + 1, ports: Ports::new() }), []);
    assert_eq!(rig.instance().run.as_ref().and_then(|run| run.pid), Some(pid + 1));
    assert_eq!(rig.on(Happening::MainPid(pid + 1)), []);
}

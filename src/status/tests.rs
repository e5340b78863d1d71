//! What is kept, told, taken over and forgotten.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::client::message::Label;
use crate::cluster::wire::{decode, encode};
use crate::host::Moment;
use crate::keeper::protocol::RunId;
use crate::spec::{HostName, InstanceId};

fn name(host: &str) -> HostName {
    host.parse().unwrap()
}

fn zone(number: u32) -> InstanceId {
    format!("zone.{number}").parse().unwrap()
}

fn at(ms: u64) -> Moment {
    Moment(ms * 1_000_000)
}

fn players(players: u32) -> Summary {
    Summary { players: Some(players), ..Summary::default() }
}

fn board(host: &str) -> Board {
    let mut board = Board::new(name(host));
    board.begin(1);
    board
}

/// Everything goes into one answer.
const ROOM: (usize, usize) = (usize::MAX, 0);

/// One question of `to` and its answer, as it travels. True: there is more.
fn pull(from: &mut Board, to: &mut Board, now: Moment, room: (usize, usize)) -> bool {
    let (deltas, more) = from.since(|_| true, &to.places(), now, room);
    for delta in deltas {
        let delta: Delta = decode(&encode(&delta).unwrap()).unwrap();
        if delta.host != *to.own_name() {
            assert_ne!(to.merge(delta, now), Merged::Refused);
        }
    }
    more
}

/// What a board shows of a host.
fn shown(board: &Board, host: &str, now: Moment) -> BTreeMap<InstanceId, (RunId, u32)> {
    let (news, _) = board.news(&Places::new(), now);
    let of_host = news.into_iter().filter(|(of, _, _)| **of == name(host));
    of_host
        .map(|(_, id, line)| (id.clone(), (line.run, line.summary.as_ref().unwrap().players.unwrap())))
        .collect()
}

#[test]
fn what_a_run_says_is_cut_to_size() {
    let said = json!({
        "players": 3, "capacity": 4_294_967_296u64, "fps": 59.5, "ping_ms": 40, "map": "harbour", "name": "x",
        "text": "ä".repeat(100), "player_list": [{ "name": "ann" }],
        "labels": { "mode": "ctf", "ranked": true, "round": 2, "ratio": 0.5, "deep": {}, "x".repeat(65): 1 },
    });
    let summary = Summary::of(said.as_object().unwrap());
    assert_eq!(
        (summary.players, summary.capacity, summary.fps, summary.ping_ms),
        (Some(3), None, Some(59.5), Some(40.0))
    );
    assert_eq!(summary.text.as_ref().unwrap().len(), 128);
    let labels: Vec<&str> = summary.labels.keys().map(String::as_str).collect();
    assert_eq!(labels, ["mode", "ranked", "ratio", "round"]);
    for (label, value) in [("mode", "ctf"), ("ranked", "true"), ("round", "2"), ("ratio", "0.5")] {
        assert!(summary.has(label, value), "{label}");
        assert!(!summary.has(label, "other"), "{label}");
    }
    assert_eq!(summary.shown().labels["ranked"], Label::Flag(true));
    assert!(Summary::of(json!({ "name": "x" }).as_object().unwrap()).is_empty());

    let many: serde_json::Map<_, _> = (0..40).map(|n| (format!("{n:02}"), json!("v".repeat(200)))).collect();
    let summary = Summary::of(json!({ "labels": many }).as_object().unwrap());
    assert!(summary.size() <= MAX_SUMMARY && summary.size() > MAX_SUMMARY - 200, "{}", summary.size());
    assert!(encode(&summary).unwrap().len() <= MAX_SUMMARY);
}

#[test]
fn a_status_is_told_with_its_age_and_only_while_its_host_vouches_for_it() {
    let (mut alpha, mut beta) = (board("alpha"), board("beta"));
    assert!(alpha.note(zone(0), RunId(7), Some(players(3)), at(1_000)));
    pull(&mut alpha, &mut beta, at(1_500), ROOM);
    let of = |board: &Board, run, now| {
        let of = board.of(&name("alpha"), &zone(0), RunId(run), at(now));
        of.map(|(summary, age)| (summary.players.unwrap(), age.as_millis()))
    };
    assert_eq!(of(&alpha, 7, 2_000), Some((3, 1_000)));
    assert_eq!(of(&beta, 7, 2_000), Some((3, 1_000)));
    assert_eq!(of(&beta, 8, 2_000), None, "another run");
    let fresh = FRESH.as_millis() as u64;
    assert_eq!(of(&beta, 7, 1_500 + fresh), Some((3, 500 + u128::from(fresh))));
    assert_eq!(of(&beta, 7, 1_501 + fresh), None, "nobody vouches for it");
    // The word that nothing has changed, over a third one.
    let mut gamma = board("gamma");
    pull(&mut alpha, &mut beta, at(20_000), ROOM);
    pull(&mut beta, &mut gamma, at(25_000), ROOM);
    assert_eq!(of(&gamma, 7, 20_000 + fresh), Some((3, 19_000 + u128::from(fresh))));
    assert_eq!(of(&gamma, 7, 20_001 + fresh), None, "what a third one says is as old as its host's word");
    beta.forget(at(60_000));
    assert_eq!(beta.len(), 1);
    beta.forget(at(100_000));
    assert_eq!((beta.len(), beta.places().len()), (0, 0));
    assert_eq!(alpha.len(), 1, "the own one stays");
}

#[test]
fn only_what_has_changed_is_told_and_each_as_it_is_now() {
    let (mut alpha, mut beta) = (board("alpha"), board("beta"));
    for number in 0..3 {
        alpha.note(zone(number), RunId(1), Some(players(number)), at(0));
    }
    let lines = |alpha: &mut Board, beta: &Board| {
        let delta = alpha.since(|_| true, &beta.places(), at(0), ROOM).0.remove(0);
        delta.lines.iter().map(|told| (told.instance.to_string(), told.summary.is_some())).collect::<Vec<_>>()
    };
    assert_eq!(lines(&mut alpha, &beta).len(), 3);
    pull(&mut alpha, &mut beta, at(0), ROOM);
    assert_eq!(lines(&mut alpha, &beta), []);
    let before = alpha.version();
    alpha.note(zone(1), RunId(1), Some(players(1)), at(5));
    assert_eq!((alpha.version(), lines(&mut alpha, &beta)), (before, vec![]), "it said the same again");
    for more in 0..100 {
        alpha.note(zone(1), RunId(1), Some(players(10 + more)), at(5));
    }
    alpha.note(zone(2), RunId(2), None, at(5));
    alpha.note(zone(0), RunId(1), None, at(5));
    assert_eq!(lines(&mut alpha, &beta), [("zone.1".to_owned(), true), ("zone.0".to_owned(), false)]);
    pull(&mut alpha, &mut beta, at(5), ROOM);
    assert_eq!(shown(&beta, "alpha", at(5)), [(zone(1), (RunId(1), 109)), (zone(2), (RunId(1), 2))].into());
    // Before it has joined a host tells nothing.
    let mut delta = Board::new(name("delta"));
    delta.note(zone(9), RunId(1), Some(players(9)), at(0));
    assert!(
        delta.own_since(None, at(0)).is_none()
            && delta.since(|_| true, &Places::new(), at(0), ROOM).0.is_empty()
    );
    delta.begin(4);
    assert_eq!(delta.own_since(None, at(0)).unwrap().lines.len(), 1);
}

#[test]
fn what_makes_no_sense_or_is_too_much_is_refused() {
    let mut beta = board("beta");
    let told = |seq, summary| Told { instance: zone(seq as u32), run: RunId(1), seq, age_ms: 0, summary };
    let line = |seq| told(seq, Some(std::sync::Arc::new(players(1))));
    let whole = |host: &str, to, lines| {
        let to = Place { life: 1, seq: to };
        Delta { host: name(host), to, from: None, age_ms: 0, lines }
    };
    let large = Summary { map: Some("x".repeat(MAX_SUMMARY)), ..Summary::default() };
    for wrong in [
        whole("beta", 1, vec![line(1)]),
        whole("alpha", 1, vec![line(2)]),
        whole("alpha", 2, vec![line(2), line(1)]),
        whole("alpha", 2, vec![line(1), line(1)]),
        whole("alpha", 1, vec![told(1, Some(large.into()))]),
        Delta { from: Some(3), ..whole("alpha", 5, vec![line(2)]) },
    ] {
        assert_eq!(beta.merge(wrong.clone(), at(0)), Merged::Refused, "{wrong:?}");
    }
    let on = |from, to, lines| Delta { from: Some(from), ..whole("alpha", to, lines) };
    assert_eq!(beta.merge(on(0, 1, vec![line(1)]), at(0)), Merged::Stale, "nothing is known of alpha yet");
    assert_eq!(beta.merge(whole("alpha", 4, vec![line(4)]), at(0)), Merged::Taken(1));
    assert_eq!(beta.merge(on(5, 6, vec![line(6)]), at(0)), Merged::Stale, "something is missing");
    assert_eq!(beta.merge(whole("alpha", 3, vec![line(3)]), at(0)), Merged::Stale, "it is older");
    assert_eq!(beta.merge(on(2, 5, vec![line(4), line(5)]), at(0)), Merged::Taken(1));

    let mut alpha = board("alpha");
    let taken = (0..20_000).take_while(|n| alpha.note(zone(*n), RunId(1), Some(players(1)), at(0))).count();
    assert_eq!(taken, MAX_RUNS);
    assert!(alpha.note(zone(0), RunId(1), Some(players(2)), at(0)), "who is there has its place");
    let mut alpha = board("alpha");
    let labels = |n| (0..7).map(|label| (format!("{n}.{label}"), Fact::Text("x".repeat(128)))).collect();
    let large = |n| Summary { labels: labels(n), ..Summary::default() }.bounded();
    let taken = (0..20_000).take_while(|n| alpha.note(zone(*n), RunId(1), Some(large(*n)), at(0))).count();
    let bytes: usize = (0..taken as u32).map(|n| large(n).size()).sum();
    assert!(bytes <= MAX_BYTES && bytes > MAX_BYTES - MAX_SUMMARY, "{taken} of {bytes} bytes");
}

#[test]
fn whoever_was_away_for_long_takes_the_whole() {
    let (mut alpha, mut beta, mut gamma) = (board("alpha"), board("beta"), board("gamma"));
    alpha.note(zone(0), RunId(1), Some(players(1)), at(0));
    pull(&mut alpha, &mut beta, at(0), ROOM);
    pull(&mut alpha, &mut gamma, at(0), ROOM);
    for number in 0..1_000 {
        alpha.note(zone(number), RunId(1), Some(players(2)), at(0));
        alpha.note(zone(number), RunId(1), None, at(0));
    }
    alpha.note(zone(2_000), RunId(1), Some(players(5)), at(0));
    let delta = alpha.since(|_| true, &beta.places(), at(0), ROOM).0.remove(0);
    assert_eq!((delta.from, delta.lines.len()), (None, 1), "which runs have ended is not kept for ever");
    pull(&mut alpha, &mut beta, at(0), ROOM);
    assert_eq!(shown(&beta, "alpha", at(0)), [(zone(2_000), (RunId(1), 5))].into());
    // Beta does not know which have ended meanwhile, either.
    pull(&mut beta, &mut gamma, at(0), ROOM);
    assert_eq!(shown(&gamma, "alpha", at(0)), shown(&beta, "alpha", at(0)));
}

#[test]
fn a_large_answer_goes_in_parts_and_none_waits_for_ever() {
    let mut middle = board("middle");
    for host in ["a", "b", "c", "d"] {
        let mut one = board(host);
        for number in 0..50 {
            assert!(one.note(zone(number), RunId(1), Some(players(number)), at(0)));
        }
        pull(&mut one, &mut middle, at(0), ROOM);
    }
    for first in 0..5 {
        let mut reader = board("reader");
        let mut answers = 1;
        while pull(&mut middle, &mut reader, at(0), (5_000, first)) {
            answers += 1;
            assert!(answers < 10, "no end of it");
        }
        assert_eq!((answers, reader.len()), (4, 200));
        // One host never stops talking.
        let mut seen = std::collections::BTreeSet::new();
        for start in 0..5 {
            let (deltas, _) = middle.since(|_| true, &Places::new(), at(0), (1, start));
            seen.extend(deltas.into_iter().filter(|delta| !delta.lines.is_empty()).map(|delta| delta.host));
        }
        assert_eq!(seen.len(), 4);
    }
}

#[test]
fn who_asks_seldom_has_all_of_it_all_the_same() {
    let (mut alpha, mut beta) = (board("alpha"), board("beta"));
    let say = |alpha: &mut Board, said| {
        for number in 0..1_200 {
            assert!(alpha.note(zone(number), RunId(1), Some(players(said)), at(0)));
        }
    };
    let told =
        |board: &Board, said| shown(board, "alpha", at(0)).values().filter(|(_, by)| *by == said).count();
    for round in 0..4 {
        // Twice as often as it is asked for.
        (0..2).for_each(|half| say(&mut alpha, 2 * round + half));
        assert!(!pull(&mut alpha, &mut beta, at(0), ROOM));
        assert_eq!(told(&beta, 2 * round + 1), 1_200);
    }
    // In parts the same.
    say(&mut alpha, 99);
    let delta = alpha.since(|_| true, &beta.places(), at(0), ROOM).0.remove(0);
    let (to, parts) = (delta.to, delta.parts());
    for (part, so_far) in parts.into_iter().zip([512, 1_024, 1_200]) {
        assert!(matches!(beta.merge(part, at(0)), Merged::Taken(lines) if lines <= 512));
        assert_eq!(told(&beta, 99), so_far);
    }
    assert_eq!(beta.places()[&name("alpha")], to);
    let mut gamma = board("gamma");
    gamma.merge(alpha.since(|_| true, &Places::new(), at(0), ROOM).0.remove(0).parts().remove(0), at(0));
    assert_eq!(told(&gamma, 99), 1_200, "the whole is one");
}

#[derive(Clone, Debug)]
enum Step {
    Note(u32, u64, u32),
    End(u32, u64),
    Reborn,
    /// Who asks whom: 0 is the host itself, the others have it from each other.
    Pull(usize, usize),
    Lost(usize),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..300u32, 1..3u64, 0..5u32).prop_map(|(id, run, players)| Step::Note(id, run, players)),
        3 => (0..300u32, 1..3u64).prop_map(|(id, run)| Step::End(id, run)),
        1 => Just(Step::Reborn),
        6 => (0..4usize, 0..4usize).prop_map(|(from, to)| Step::Pull(from, to)),
        1 => (1..4usize).prop_map(Step::Lost),
        2 => (1..2_000u64).prop_map(Step::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever is asked of whom, in whatever order: nobody goes back, and in the end all have what the host has.
    #[test]
    fn all_have_in_the_end_what_the_host_wrote(steps in prop::collection::vec(step(), 1..1_200)) {
        let names = ["alpha", "beta", "gamma", "delta"];
        let mut boards: Vec<Board> = names.iter().map(|host| board(host)).collect();
        let (mut life, mut now) = (1, 0);
        let place = |board: &Board| board.places().get(&name("alpha")).copied().unwrap_or_default();
        for step in steps {
            match step {
                Step::Note(id, run, said) => {
                    prop_assert!(boards[0].note(zone(id), RunId(run), Some(players(said)), at(now)));
                }
                Step::End(id, run) => {
                    prop_assert!(boards[0].note(zone(id), RunId(run), None, at(now)));
                }
                Step::Reborn => {
                    life += 1;
                    boards[0].begin(life);
                }
                Step::Pull(from, to) if from != to && to != 0 => {
                    let mut source = boards[from].clone();
                    let before = place(&boards[to]);
                    pull(&mut source, &mut boards[to], at(now), (500, 0));
                    prop_assert!(place(&boards[to]) >= before);
                    boards[from] = source;
                }
                Step::Pull(..) => {}
                Step::Lost(host) => boards[host] = board(names[host]),
                Step::Pass(ms) => now += ms,
            }
            prop_assert!(boards.iter().all(|board| board.len() <= 300));
        }
        let mut source = boards.remove(0);
        let wanted = shown(&source, "alpha", at(now));
        // One after the other, so that two of them have it from others only.
        for mut board in boards {
            pull(&mut source, &mut board, at(now), ROOM);
            prop_assert_eq!(&shown(&board, "alpha", at(now)), &wanted);
            let line = |board: &Board| -> Vec<(InstanceId, Line)> {
                let (news, _) = board.news(&Places::new(), at(now));
                let of_host = news.into_iter().filter(|(host, ..)| **host == name("alpha"));
                of_host.map(|(_, id, line)| (id.clone(), line.clone())).collect()
            };
            for ((id, own), (_, theirs)) in line(&source).into_iter().zip(line(&board)) {
                prop_assert_eq!((own.seq, own.run), (theirs.seq, theirs.run), "{}", id);
                let apart = own.at.since(theirs.at).max(theirs.at.since(own.at));
                prop_assert!(apart <= Duration::from_millis(3), "{} is {:?} off", id, apart);
            }
            source = board;
        }
    }
}

//! The map against a `BTreeMap`, and what copies share.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// What may be done to a map.
#[derive(Clone, Debug)]
enum Step {
    Insert(u16, u8),
    Change(u16, u8),
    Enter(u16, u8),
    Remove(u16),
    Retain(u16),
    /// A copy is kept, and compared with later.
    Copy,
}

fn any_step() -> impl Strategy<Value = Step> {
    let key = 0..400u16;
    prop_oneof![
        8 => (key.clone(), any::<u8>()).prop_map(|(key, value)| Step::Insert(key, value)),
        2 => (key.clone(), any::<u8>()).prop_map(|(key, value)| Step::Change(key, value)),
        2 => (key.clone(), any::<u8>()).prop_map(|(key, value)| Step::Enter(key, value)),
        4 => key.prop_map(Step::Remove),
        1 => (2..9u16).prop_map(Step::Retain),
        1 => Just(Step::Copy),
    ]
}

fn take(map: &mut SharedMap<u16, u8>, model: &mut BTreeMap<u16, u8>, step: &Step) {
    match *step {
        Step::Insert(key, value) => assert_eq!(map.insert(key, value), model.insert(key, value)),
        Step::Change(key, value) => {
            let (ours, theirs) = (map.get_mut(&key), model.get_mut(&key));
            assert_eq!(ours, theirs);
            ours.into_iter().chain(theirs).for_each(|held| *held = value);
        }
        Step::Enter(key, value) => {
            assert_eq!(map.get_or_insert_with(key, || value), model.entry(key).or_insert(value));
        }
        Step::Remove(key) => assert_eq!(map.remove(&key), model.remove(&key)),
        Step::Retain(part) => {
            map.retain(|key, value| key % part != 0 || *value > 250);
            model.retain(|key, value| *key % part != 0 || *value > 250);
        }
        Step::Copy => {}
    }
}

fn sound(map: &SharedMap<u16, u8>) {
    assert!(map.runs.iter().all(|run| !run.is_empty() && run.len() <= LONGEST));
    assert_eq!(map.len(), map.iter().count());
}

type Change = (u16, Option<u8>, Option<u8>);

fn changes(new: &SharedMap<u16, u8>, old: &SharedMap<u16, u8>) -> Vec<Change> {
    let mut told = Vec::new();
    new.changes(old, |key, was, is| told.push((*key, was.copied(), is.copied())));
    told
}

fn expected(new: &BTreeMap<u16, u8>, old: &BTreeMap<u16, u8>) -> Vec<Change> {
    let keys: std::collections::BTreeSet<u16> = new.keys().chain(old.keys()).copied().collect();
    let pair = |key: u16| (key, old.get(&key).copied(), new.get(&key).copied());
    keys.into_iter().map(pair).filter(|(_, was, is)| was != is).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn it_is_a_sorted_map_and_copies_do_not_move(
        begin in 0..400u16,
        steps in proptest::collection::vec(any_step(), 1..300),
        (from, to) in (0..400u16, 0..400u16),
    ) {
        let mut map: SharedMap<u16, u8> = (0..begin).map(|key| (key, 0)).collect();
        let mut model: BTreeMap<u16, u8> = (0..begin).map(|key| (key, 0)).collect();
        let mut copies = vec![(map.clone(), model.clone())];
        for step in &steps {
            take(&mut map, &mut model, step);
            if matches!(step, Step::Copy) {
                copies.push((map.clone(), model.clone()));
            }
        }
        sound(&map);
        prop_assert!(map.iter().eq(&model) && map.iter().rev().eq(model.iter().rev()));
        prop_assert!((0..400).all(|key| map.get(&key) == model.get(&key)));
        let (from, to) = (from.min(to), from.max(to));
        prop_assert!(map.range(from..to).eq(model.range(from..to)));
        prop_assert!(map.range(from..=to).rev().eq(model.range(from..=to).rev()));
        let after = (Bound::Excluded(from), Bound::Unbounded);
        prop_assert!(map.range::<u16, _>(after).eq(model.range::<u16, _>(after)));
        for (copy, was) in &copies {
            prop_assert!(copy.iter().eq(was), "a copy stays what it was");
            prop_assert_eq!(changes(&map, copy), expected(&model, was));
            prop_assert_eq!(map == *copy, model == *was);
        }
    }

    #[test]
    fn its_bytes_are_those_of_a_sorted_map(model: BTreeMap<u16, u8>) {
        let map: SharedMap<u16, u8> = model.clone().into_iter().collect();
        let config = bincode::config::standard();
        let bytes = bincode::serde::encode_to_vec(&model, config).unwrap();
        prop_assert_eq!(&bincode::serde::encode_to_vec(&map, config).unwrap(), &bytes);
        let (back, _): (SharedMap<u16, u8>, _) = bincode::serde::decode_from_slice(&bytes, config).unwrap();
        prop_assert_eq!(back, map);
    }
}

#[test]
fn a_length_that_is_a_lie_is_an_error_and_no_memory() {
    let config = bincode::config::standard();
    let bytes = bincode::serde::encode_to_vec(u64::MAX, config).unwrap();
    assert!(bincode::serde::decode_from_slice::<SharedMap<u16, u8>, _>(&bytes, config).is_err());
}

#[test]
fn a_change_touches_one_run_and_leaves_the_others_shared() {
    let before: SharedMap<u32, String> = (0..50_000).map(|key| (key, key.to_string())).collect();
    let mut after = before.clone();
    after.insert(25_000, "new".to_owned());
    after.retain(|key, _| *key != 7);
    let shared = before.runs.iter().filter(|run| after.runs.iter().any(|other| Arc::ptr_eq(run, other)));
    assert_eq!(shared.count(), before.runs.len() - 2);
}
